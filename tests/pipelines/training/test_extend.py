"""A longer training continues from a shorter one of the same settings, to the same end as if it had not."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from ingot.pipelines.training.checkpoint import committed_steps
from ingot.pipelines.training.log import read_log

if TYPE_CHECKING:
    from conftest import SmallTraining

FLAT: dict[str, Any] = {"schedule": "warmup-stable-decay", "decay": 0.25, "checkpoint_every": 50}


@pytest.mark.long
@pytest.mark.timeout(300)
def test_more_steps_continue_before_the_decay_bit_for_bit(small_training: SmallTraining) -> None:
    store, told = small_training.store, []
    small_training.train_here("artifacts/pretrain/whole", **FLAT, steps=12)
    small_training.train_here("artifacts/pretrain/short", **FLAT, steps=8, keep_checkpoints=1)
    assert committed_steps(store, "artifacts/pretrain/short") == [8, 6]
    small_training.train_here("artifacts/pretrain/other", tell=told.append, **FLAT, steps=12, seed=2)
    small_training.train_here("artifacts/pretrain/earlier", tell=told.append, **FLAT, steps=4)
    assert not [message for message in told if message["kind"] == "extended"]
    for record in list(store.list("shared/stable/")):  # that of the whole training would be taken
        if record.endswith("00000009.json"):
            store.delete(record)
    small_training.train_here("artifacts/pretrain/long", tell=told.append, **FLAT, steps=12)
    assert {"kind": "extended", "source": "artifacts/pretrain/short", "step": 6} in told
    whole, long = (json.loads(store.read(f"artifacts/pretrain/{k}/trained.json")) for k in ("whole", "long"))
    assert long["files"] == whole["files"]
    lines = [read_log(store, f"artifacts/pretrain/{key}") for key in ("whole", "long")]
    assert [line["loss"] for line in lines[1]] == [line["loss"] for line in lines[0]]
    for name in ("steps", "tokens_trained", "loss_first", "bits_per_byte_before", "bits_per_byte_after"):
        assert long["metrics"][name] == whole["metrics"][name]
