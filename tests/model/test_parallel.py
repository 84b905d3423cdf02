"""Processes that share a model against one that has it alone."""

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
WORLDS = [(world, rank) for world in (1, 2, 3, 4) for rank in range(world)]
MATRICES = 2 * 7
"""In the blocks of the model that is trained."""


def run(folder: Path, what: str) -> dict[str, Any]:
    script = str(Path(__file__).with_name("train_ranks.py"))
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, script, str(folder), what], env=environment, check=True, timeout=280)
    return {path.stem: json.loads(path.read_text()) for path in folder.glob("*.json")}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("ranks")


@pytest.fixture(scope="module")
def runs(folder) -> dict[str, Any]:
    """What each rank of each number of processes saw, by "WORLD-RANK"."""
    return run(folder, "equal")


def assert_equal(found: dict[str, Any], expected: dict[str, Any]) -> None:
    """Over the steps that both have."""
    steps = min(len(found["loss"]), len(expected["loss"]))
    assert found["tokens"][:steps] == expected["tokens"][:steps]
    assert found["loss"][:steps] == pytest.approx(expected["loss"][:steps], rel=1e-5)
    # weights that differ by a millionth have norms that differ by some hundred-thousandths
    assert found["norm"][:steps] == pytest.approx(expected["norm"][:steps], rel=1e-4)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_any_number_of_processes_with_unequal_targets_trains_as_one(runs, folder, optimizer):
    alone = runs["1-0"][optimizer]
    assert alone["loss"][-1] < alone["loss"][0] - 0.1
    one = torch.load(folder / "1.pt", weights_only=True)[optimizer]
    for world, rank in WORLDS[1:]:
        assert runs[f"{world}-{rank}"][optimizer] == runs[f"{world}-0"][optimizer]
        assert_equal(runs[f"{world}-{rank}"][optimizer], alone)
        weights = torch.load(folder / f"{world}.pt", weights_only=True)[optimizer]
        torch.testing.assert_close(weights, one, rtol=0, atol=1e-5)


def test_no_rank_holds_a_whole_parameter(runs):
    for world in (2, 3, 4):
        ranks = [runs[f"{world}-{rank}"]["sharded"] for rank in range(world)]
        for name, (_, whole, _) in ranks[0].items():
            assert all(rank[name][0] and rank[name][2] < whole for rank in ranks)
            assert sum(rank[name][2] for rank in ranks) == whole
    assert [rank["blocks.0.attention.key.weight"][2] for rank in ranks] == [60, 60, 60, 0]
    assert not any(distributed for distributed, _, _ in runs["1-0"]["sharded"].values())


def test_each_matrix_is_orthogonalised_by_one_of_the_ranks(runs):
    for world in (1, 2, 3, 4):
        shares = [runs[f"{world}-{rank}"]["orthogonalised"] for rank in range(world)]
        assert sum(shares) == MATRICES
        assert max(shares) - min(shares) <= 1


def test_replicated_groups_and_groups_of_shards_sum_their_gradients(runs):
    assert_equal(runs["3-0"]["replicated"], runs["1-0"]["adamw"])
    assert_equal(runs["4-0"]["hybrid"], runs["1-0"]["muon"])


def test_sharded_and_selectively_checkpointed_is_neither(runs):
    assert_equal(runs["3-0"]["selective"], runs["1-0"]["adamw"])


@pytest.mark.long
def test_sharded_selectively_checkpointed_and_compiled_is_eager(tmp_path):
    seen = run(tmp_path, "compiled")["compiled-0"]
    assert_equal(seen["compiled"], seen["eager"])


def test_bf16_with_checkpointing_follows_the_fp32_losses_on_fp32_master_weights(runs):
    assert runs["2-0"]["bf16_master"] == ["torch.float32"]
    assert runs["2-0"]["bf16"]["loss"] == pytest.approx(runs["1-0"]["adamw"]["loss"][:10], rel=0.02)


def test_a_sharded_model_generates_what_the_whole_one_does(runs):
    for world, rank in WORLDS:
        assert runs[f"{world}-{rank}"]["generated"] == runs["1-0"]["generated"]
