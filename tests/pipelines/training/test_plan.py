"""What `ingot plan` says of a training, against what the training stores."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch

from ingot.pipelines.artifact import load
from ingot.pipelines.pipeline import Outcome
from ingot.pipelines.plan import plan_training
from ingot.pipelines.pretrain import pretraining
from ingot.pipelines.store import LocalStore
from ingot.pipelines.training.group import Group
from ingot.pipelines.training.loop import Loop

if TYPE_CHECKING:
    from conftest import SmallTraining

LARGER = {"width": 64, "layers": 2, "heads": 4, "kv_heads": 2, "hidden": 160, "context": 32}


class Counting(LocalStore):
    """Counts what is stored."""

    def __init__(self, uri: str) -> None:
        super().__init__(uri)
        self.bytes = self.objects = 0

    def create(self, key: str, data: bytes) -> bool:
        created = super().create(key, data)
        self.bytes += len(data) * created
        self.objects += created
        return created


def test_a_training_stores_the_planned_bytes_and_objects(small_training: SmallTraining) -> None:
    store = Counting(small_training.store.uri)
    section = small_training.section(
        workers=1, model=LARGER, steps=10, precision="bfloat16", checkpoint_every=3, keep_checkpoints=2
    )
    job = pretraining(section, small_training.tokens, small_training.tokenizer)
    group = Group(0, 1, torch.device("cpu"), section.micro_batch)
    Loop(store, "artifacts/pretrain/planned", job, section, group).run()
    planned = plan_training("pretrain", section, section.model.config(512)).written
    assert planned.checkpoints == 4
    assert store.bytes == pytest.approx(planned.bytes, rel=0.02)
    # The stage's own manifest is not the training's to write.
    assert store.objects == planned.objects - 1
    # What is deleted in between: as many checkpoints as are not kept.
    assert planned.bytes - planned.bytes_left == 2 * planned.checkpoint_bytes


def test_a_checkpoint_of_two_workers_is_as_large_as_planned(
    uninterrupted: Outcome, uninterrupted_key: str, small_training: SmallTraining
) -> None:
    section = small_training.section()
    planned = plan_training("pretrain", section, section.model.config(512))
    checkpoint = load(small_training.store, f"{uninterrupted_key}/checkpoints/00000020")
    assert checkpoint is not None
    size = sum(file.bytes for file in checkpoint.files.values())
    assert planned.written.checkpoint_bytes == pytest.approx(size, rel=0.04)
    assert planned.tokens == uninterrupted.metrics["tokens_trained"]
