"""A training with its own embedded Ray; started by test_resume.py, to be killed.

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


def main(uri: str, key: str, section: str, job: str) -> None:
    store = open_store(uri)
    with cluster(store, cpus=2):
        workspace = Workspace(store, key, Silence())
        train(workspace, Pretrain.model_validate_json(section), Job.from_json(json.loads(job)))


if __name__ == "__main__":
    main(*sys.argv[1:])
