"""A training in a process of its own, with an embedded Ray or on the cluster that RAY_ADDRESS names. Prints
the lines that a person would see, and then the metrics as JSON.

python driver.py STORE KEY SECTION JOB: the last two as JSON."""

from __future__ import annotations

import json
import sys
from typing import Any

from ingot.pipelines.cluster import cluster
from ingot.pipelines.sections import Pretrain
from ingot.pipelines.store import open_store
from ingot.pipelines.training.job import Job
from ingot.pipelines.training.launch import train
from ingot.pipelines.units import Workspace


class Silence:
    """A `Progress` that shows nothing."""

    def __getattr__(self, name: str) -> Any:
        return lambda *words, **figures: None


class Lines(Silence):
    """A `Progress` that shows what stays."""

    def say(self, line: str, cut: bool = False) -> None:
        print(line, flush=True)


def main(uri: str, key: str, section: str, job: str) -> None:
    store = open_store(uri)
    with cluster(store, cpus=2):
        workspace = Workspace(store, key, Lines())
        outcome = train(workspace, Pretrain.model_validate_json(section), Job.from_json(json.loads(job)))
    print(json.dumps(outcome.metrics))


if __name__ == "__main__":
    main(*sys.argv[1:])
