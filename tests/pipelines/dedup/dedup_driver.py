"""A driver of the stage in a process of its own, on the cluster of RAY_ADDRESS or an embedded one: `python
dedup_driver.py STORE CORPUS_KEY WORKERS [SETTINGS]` prints the peak of its memory in bytes, the artifact's
digest and its metrics, as JSON. With SETTINGS (JSON, of the section) every unit takes a second longer."""

from __future__ import annotations

import json
import re
import sys
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from dedup_workspaces import Quiet

from ingot.pipelines import dedup
from ingot.pipelines.artifact import digest_of, load
from ingot.pipelines.cluster import cluster
from ingot.pipelines.sections import Dedup
from ingot.pipelines.store import Store, open_store
from ingot.pipelines.units import Unit, Workspace


def peak() -> int:
    """Not `ru_maxrss`: that begins with what the parent process held when it forked."""
    [kilobytes] = re.findall(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return int(kilobytes) * 1024


def unhurried(work: Any, store: Store, body: Mapping[str, Any]) -> Mapping[str, Any]:
    time.sleep(1)
    done: Mapping[str, Any] = work(store, body)
    return done


class Unhurried(Workspace):
    """Every unit takes a second longer."""

    def run(self, step: str, units: Sequence[Unit], work: Any) -> list[dict[str, Any]]:
        return super().run(step, units, partial(unhurried, work))


if __name__ == "__main__":
    uri, key, workers, *settings = sys.argv[1:]
    store = open_store(uri)
    corpus = load(store, key)
    assert corpus is not None
    section = Dedup(**(json.loads(settings[0]) if settings else {}))
    with cluster(store, int(workers)):
        kind = Unhurried if settings else Workspace
        workspace = kind(store, "artifacts/dedup/measured", Quiet(), int(workers))
        outcome = dedup.run(workspace, section, {"corpus": corpus})
    digest = digest_of(outcome.files)
    print(json.dumps({"peak": peak(), "digest": digest, "metrics": outcome.metrics}))
