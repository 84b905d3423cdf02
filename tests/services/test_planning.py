"""`ingot plan` as a person and as a program reads it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from ingot.errors import UsageError
from ingot.services.planning import plan_recipe

RECIPES = Path(__file__).parents[2] / "recipes"
TINY = str(RECIPES / "tiny.yaml")


def test_a_plan_of_gpus_needs_neither_them_nor_the_store(run_ingot: Any, tmp_path: Path) -> None:
    words = ["plan", str(RECIPES / "base-1b.yaml"), "--store", "gs://nowhere/x"]
    done = run_ingot(
        *words, "--device", "h100", "--peak-share", "0.5", "--price", "2", "--json", cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    body = json.loads(done.stdout)
    assert body["model"]["parameters"] == 1_199_671_296
    assert "gs://nowhere/x" in body["unseen"]
    training = body["stages"][4]["training"]
    assert (training["stage"], training["workers"], training["tokens"]) == ("pretrain", 8, 50_000 * 524_288)
    assert training["memory"]["peak"] > 14e9 / 8
    assert training["written"]["checkpoints"] == 50
    [timing] = body["timings"]
    assert timing["seconds_per_step"] * 8 * 0.5 * 989e12 == pytest.approx(training["flops"] / 50_000)
    assert timing["cost"] == pytest.approx(2 * timing["worker_hours"])
    assert list(tmp_path.iterdir()) == []


def test_a_plan_for_people_has_every_training(run_ingot: Any, tmp_path: Path) -> None:
    done = run_ingot("plan", TINY, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "1,647,552 parameters" in done.stdout
    for training in ("pretrain", "sft", "preference"):
        assert f"\n{training} " in done.stdout
    assert (
        "what corpus, dedup, tokenizer, tokens, evaluate, publish will write depends on the text"
        in done.stdout
    )


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"device": "Cray"}, r"--device Cray: its peak is not known; there are: H100 PCIe"),
        ({"price": 2.0}, r"--price: a cost needs a time; add --probe"),
        ({"measure": True, "device": "H100"}, r"--probe and --device: .* keep one"),
        (
            {"measure": True, "settings": ["pretrain.gpus_per_worker=1"]},
            r"this machine has none; probe where",
        ),
    ],
)
def test_options_that_do_not_fit_are_refused_with_the_mend(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], said: str
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    usual: dict[str, Any] = {"measure": False, "device": None, "share": 0.4, "price": None, "as_json": False}
    settings = [f"store={tmp_path}/store", *options.pop("settings", [])]
    with pytest.raises(UsageError, match=said):
        plan_recipe(Path(TINY), settings, **usual | options)


@pytest.mark.long
def test_a_probe_takes_steps_here_and_tells_the_time_of_all(run_ingot: Any, tmp_path: Path) -> None:
    model = ["width=64", "layers=2", "heads=2", "hidden=128", "context=64"]
    settings = [f"pretrain.model.{value}" for value in model] + ["pretrain.batch_tokens=512"]
    words = [word for setting in settings for word in ("--set", setting)]
    done = run_ingot("plan", TINY, *words, "--probe", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    body = json.loads(done.stdout)
    assert body["probe"]["steps"] == 20
    assert body["probe"]["peak_bytes"] > 0
    assert [timing["stage"] for timing in body["timings"]] == ["pretrain", "sft", "preference"]
    assert body["timings"][0]["seconds"] > 540 * 0.9 * body["timings"][0]["seconds_per_step"]
