"""A driver of the stage in a process of its own, on the cluster of RAY_ADDRESS: `python dedup_driver.py STORE
CORPUS_KEY` prints the peak of its memory in bytes and the stage's metrics, as JSON."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

from ingot.pipelines import dedup
from ingot.pipelines.artifact import load
from ingot.pipelines.cluster import cluster
from ingot.pipelines.sections import Dedup
from ingot.pipelines.store import open_store
from ingot.pipelines.units import Workspace


class Quiet:
    def __getattr__(self, name: str) -> Any:
        return lambda *words, **figures: None


def peak() -> int:
    """Not `ru_maxrss`: that begins with what the parent process held when it forked."""
    [kilobytes] = re.findall(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return int(kilobytes) * 1024


if __name__ == "__main__":
    uri, key = sys.argv[1:]
    store = open_store(uri)
    corpus = load(store, key)
    assert corpus is not None
    with cluster(store):
        workspace = Workspace(store, "artifacts/dedup/measured", Quiet(), 2)
        outcome = dedup.run(workspace, Dedup(), {"corpus": corpus})
    print(json.dumps({"peak": peak(), "metrics": outcome.metrics}))
