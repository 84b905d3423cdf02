"""Two processes that share a model against one that has it alone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("ranks")
    script = str(Path(__file__).with_name("train_ranks.py"))
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    processes = [
        subprocess.Popen([sys.executable, script, str(rank), str(world), str(folder)], env=environment)
        for rank, world in ((0, 2), (1, 2), (0, 1))
    ]
    try:
        assert [process.wait(timeout=240) for process in processes] == [0, 0, 0]
    finally:
        for process in processes:
            process.kill()
    seen = {path.stem: json.loads(path.read_text()) for path in folder.glob("*.json")}
    weights = {world: torch.load(folder / f"{world}.pt", weights_only=True) for world in (1, 2)}
    return {"alone": seen["1-0"], "first": seen["2-0"], "second": seen["2-1"], "weights": weights}


def test_two_ranks_with_unequal_targets_train_as_one_process(runs):
    alone, first, second = runs["alone"], runs["first"], runs["second"]
    for name in ("loss", "norm", "tokens"):
        assert first[name] == second[name]
        assert first[name] == pytest.approx(alone[name], rel=1e-5)
    assert alone["loss"][-1] < 0.9 * alone["loss"][0]
    # A few of AdamW's first steps divide two tiny numbers: single weights differ by up to 1e-5.
    torch.testing.assert_close(runs["weights"][2], runs["weights"][1], rtol=0, atol=1e-4)


def test_no_rank_holds_a_whole_parameter(runs):
    halves = [runs[rank]["sharded"] for rank in ("first", "second")]
    for name, (distributed, whole, local) in halves[0].items():
        assert distributed
        assert local < whole
        assert local + halves[1][name][2] == whole
    assert not any(distributed for distributed, _, _ in runs["alone"]["sharded"].values())


def test_replicated_groups_sum_their_gradients(runs):
    assert runs["first"]["replicated_loss"] == pytest.approx(runs["alone"]["loss"][:5], rel=1e-5)


def test_bf16_with_checkpointing_follows_the_fp32_losses_on_fp32_master_weights(runs):
    assert runs["first"]["bf16_master"] == ["torch.float32"]
    assert runs["first"]["bf16_loss"] == pytest.approx(runs["alone"]["loss"], rel=0.02)


def test_a_sharded_model_generates_what_the_whole_one_does(runs):
    assert runs["first"]["generated"] == runs["second"]["generated"] == runs["alone"]["generated"]
