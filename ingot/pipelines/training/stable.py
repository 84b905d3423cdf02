"""Extending a training: with the schedule warmup-stable-decay, a longer one continues from a shorter one.

Until the learning rate begins to fall, no step depends on how many there will be. So the checkpoint of that
moment is kept, and a training of the same *lineage*, one that differs in `steps`, `decay` and `floor` alone,
begins there and ends as if it had taken all steps itself. The log and the evaluations until then are
copied."""

from __future__ import annotations

import json
from typing import Any

from ingot.pipelines.artifact import canonical_digest
from ingot.pipelines.sections import Training
from ingot.pipelines.store import Store
from ingot.pipelines.training.evaluation import copy_evaluations
from ingot.pipelines.training.log import copy_log

OWN = ("steps", "decay", "floor")  # settings that the stable phase does not depend on


def lineage_of(section: Training, identity: dict[str, Any]) -> str | None:
    """The lineage of a training with these settings; `identity` is what else its steps depend on. None where
    the schedule has no stable phase."""
    if section.schedule != "warmup-stable-decay":
        return None
    settings = {name: value for name, value in section.what().items() if name not in OWN}
    return canonical_digest({**identity, "section": settings})[:32]


def last_stable_step(section: Training) -> int:
    """The steps that are taken before the learning rate falls."""
    return section.steps - section.decay_steps


def publish_stable(store: Store, lineage: str, key: str, step: int) -> None:
    """Lets longer trainings find the checkpoint of the training at `key`, if it is there."""
    if step and store.exists(_manifest(key, step)):
        store.create(f"shared/stable/{lineage}/{step:08d}.json", json.dumps({"training": key}).encode())


def newest_stable(store: Store, lineage: str, at_most: int) -> int:
    """The greatest step, up to `at_most`, whose checkpoint a training of the lineage has kept; 0 for none."""
    steps = [int(key[-13:-5]) for key in store.list(f"shared/stable/{lineage}/")]
    found = [s for s in steps if s <= at_most and store.exists(_manifest(training_of(store, lineage, s), s))]
    return max(found, default=0)


def training_of(store: Store, lineage: str, step: int) -> str:
    """The key of the training that has the lineage's checkpoint of this step."""
    training: str = json.loads(store.read(f"shared/stable/{lineage}/{step:08d}.json"))["training"]
    return training


def copy_history(store: Store, source: str, key: str, step: int) -> None:
    """What the training at `source` logged and measured until `step` is the one at `key`'s too."""
    copy_log(store, source, key, step)
    copy_evaluations(store, source, key, step)


def _manifest(key: str, step: int) -> str:
    return f"{key}/checkpoints/{step:08d}/manifest.json"
