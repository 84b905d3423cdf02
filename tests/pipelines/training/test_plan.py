"""What `ingot plan` says a training stores, against what it stores."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from made_tokens import put_tokens

from ingot.pipelines.artifact import load
from ingot.pipelines.plan import plan_training
from ingot.pipelines.sections import Pretrain
from ingot.pipelines.store import LocalStore
from ingot.pipelines.training.group import Group
from ingot.pipelines.training.job import Job, Part, SpecialTokens
from ingot.pipelines.training.loop import Loop

KEY = "artifacts/pretrain/planned"
SECTION = Pretrain.model_validate(
    {
        "model": {"width": 64, "layers": 2, "heads": 4, "kv_heads": 2, "hidden": 160, "context": 32},
        "steps": 10,
        "batch_tokens": 256,
        "learning_rate": 0.01,
        "precision": "bfloat16",
        "checkpoint_every": 3,
        "evaluate_every": 5,
        "keep_checkpoints": 2,
    }
)


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


def nothing_much(model: Any, store: Any, spec: Mapping[str, Any], group: Group) -> dict[str, float]:
    """An `Evaluation` whose record is as long as others."""
    return {"bits_per_byte": 1.23456789}


def test_a_training_stores_the_planned_bytes_and_objects(tmp_path: Path) -> None:
    store = Counting(str(tmp_path))
    ids = np.arange(5000) % 300
    tokens = put_tokens(store, [ids], ids)
    model = SECTION.model.config(vocabulary=2048)
    job = Job(
        model=asdict(model),
        dataset=Part(
            "ingot.pipelines.training.tokens:TokenDataset",
            {"tokens": tokens.key, "context": 32, "rows": 8, "seed": 1},
        ),
        evaluation=Part("test_plan:nothing_much"),
        evaluate_every=SECTION.evaluate_every,
        special=SpecialTokens(0, (0,), 0),
    )
    store.bytes = store.objects = 0
    Loop(store, KEY, job, SECTION, Group(0, 1, torch.device("cpu"), SECTION.micro_batch)).run()
    planned = plan_training("pretrain", SECTION, model).written
    assert planned.checkpoints == 5  # after 3, 5, 6, 9 and 10 steps
    assert store.bytes == pytest.approx(planned.bytes, rel=0.02)
    assert store.objects == planned.objects - 1  # the stage's own manifest is not the training's to write
    left = [path.stat().st_size for path in tmp_path.rglob("*") if path.is_file()]
    tokens_bytes = sum(file.bytes for file in tokens.files.values())
    assert sum(left) - tokens_bytes == pytest.approx(planned.bytes_left, rel=0.02)
    checkpoint = load(store, f"{KEY}/checkpoints/00000010")
    assert checkpoint is not None
    size = sum(file.bytes for file in checkpoint.files.values())
    assert planned.checkpoint_bytes == pytest.approx(size, rel=0.02)
