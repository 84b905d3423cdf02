"""Measuring a model while it is trained, and the figures of the steps."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from ingot.pipelines.training import evaluation
from ingot.pipelines.training.checkpoint import newest_step
from ingot.pipelines.training.evaluation import read_evaluations
from ingot.pipelines.training.figures import useful_seconds
from ingot.pipelines.training.log import read_log
from ingot.pipelines.training.loop import Loop

if TYPE_CHECKING:
    from conftest import Recorder, SmallTraining

OFTEN = {"evaluate_every": 8, "checkpoint_every": 10, "sample_tokens": 6}
KEY = "artifacts/pretrain/evaluated"


@pytest.fixture(scope="module")
def messages() -> list[dict[str, Any]]:
    return []


@pytest.fixture(scope="module")
def evaluated(small_training: SmallTraining, messages: list[dict[str, Any]]) -> Loop:
    """One worker, 20 steps, measured every 8."""
    return small_training.train_here(KEY, tell=messages.append, **OFTEN)


def test_the_model_is_measured_before_meanwhile_and_after(
    evaluated: Loop, small_training: SmallTraining, messages: list[dict[str, Any]]
) -> None:
    lines = read_evaluations(small_training.store, KEY)
    assert [line["step"] for line in lines] == [0, 8, 16, 20]
    bits = [line["metrics"]["bits_per_byte"] for line in lines]
    assert bits == sorted(bits, reverse=True)
    told = [message for message in messages if message["kind"] == "evaluation"]
    assert [{"kind": "evaluation", **line} for line in lines] == told
    record = json.loads(small_training.store.read(f"{KEY}/trained.json"))["metrics"]
    assert (record["bits_per_byte_before"], record["bits_per_byte_after"]) == (bits[0], bits[-1])


def test_each_evaluation_has_what_the_model_writes_after_the_prompts(
    evaluated: Loop, small_training: SmallTraining
) -> None:
    for line in read_evaluations(small_training.store, KEY):
        assert [sample["prompt"] for sample in line["samples"]] == ["def", "import", "class"]
    assert any(sample["continuation"] for sample in line["samples"])


def test_measuring_changes_nothing(evaluated: Loop, small_training: SmallTraining) -> None:
    key = "artifacts/pretrain/seldom-evaluated"
    small_training.train_here(key)
    seldom, often = (read_log(small_training.store, each) for each in (key, KEY))
    assert [line["loss"] for line in seldom] == [line["loss"] for line in often]


def test_a_measurement_that_ends_a_worker_costs_no_step_and_is_made_up_for(
    evaluated: Loop, small_training: SmallTraining, monkeypatch: pytest.MonkeyPatch
) -> None:
    key, store = "artifacts/pretrain/evaluation-killed", small_training.store
    measure = evaluation.bits_per_byte

    def out_of_memory(*words: Any) -> dict[str, float]:
        if newest_step(store, key) == 8:  # what is measured is in the store
            raise RuntimeError("out of memory")
        return measure(*words)

    monkeypatch.setattr(evaluation, "bits_per_byte", out_of_memory)
    with pytest.raises(RuntimeError, match="out of memory"):
        small_training.train_here(key, **OFTEN)
    assert [line["step"] for line in read_evaluations(store, key)] == [0]

    measured = []
    monkeypatch.setattr(evaluation, "bits_per_byte", lambda *words: measured.append(1) or measure(*words))
    messages: list[dict[str, Any]] = []
    small_training.train_here(key, tell=messages.append, **OFTEN)
    assert len(measured) == 3  # at 8, 16 and 20; what was measured before the first step is not again
    assert messages[0]["measured"] == read_evaluations(store, key)[0]["metrics"]
    assert [line["metrics"] for line in read_evaluations(store, key)] == [
        line["metrics"] for line in read_evaluations(store, KEY)
    ]


def test_workers_that_share_a_model_write_what_one_alone_writes(
    evaluated: Loop, small_training: SmallTraining, recorder: Recorder
) -> None:
    key = "artifacts/pretrain/evaluated-together"
    small_training.train(key, recorder, **OFTEN)
    alone, together = (read_evaluations(small_training.store, each) for each in (KEY, key))
    assert [line["step"] for line in together] == [0, 8, 16, 20]
    for one, two in zip(alone, together, strict=True):
        assert two["metrics"] == pytest.approx(one["metrics"], rel=1e-5)
        assert two["samples"] == one["samples"]
    said = [told[1] for told in recorder.told if told[0] == "say"]
    assert sum("bits per byte" in line for line in said) == 4
    assert sum(line.startswith("    import → ") for line in said) == 4


def test_goodput_counts_the_steps_that_stay_and_all_the_time_since_the_first_attempt(
    small_training: SmallTraining,
) -> None:
    key, store = "artifacts/pretrain/goodput", small_training.store

    def stop(message: dict[str, Any]) -> None:
        if message["kind"] == "step" and message["step"] == 14:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        small_training.train_here(key, tell=stop, checkpoint_every=5)
    small_training.train_here(key, checkpoint_every=5)
    lines = read_log(store, key)
    assert [line["attempt"] for line in lines] == [1] * 10 + [2] * 10
    began = json.loads(store.read(f"{key}/attempts/000001/worker-00000.json"))["at"]
    useful, wall = useful_seconds(lines), lines[-1]["at"] - began
    assert 0 < useful < sum(line["seconds"] for line in lines) < wall
    # the clock was read after the line before was written, and before this one was
    assert useful / wall <= lines[-1]["goodput"] <= useful / (lines[-2]["at"] - began)
    record = json.loads(store.read(f"{key}/trained.json"))["metrics"]
    assert 0 < record["goodput"] <= useful / wall


def test_every_line_of_the_log_has_the_figures_of_the_live_view(
    evaluated: Loop, small_training: SmallTraining
) -> None:
    for line in read_log(small_training.store, KEY):
        assert line["flops_per_second"] > 0
        assert 0 < line["share_of_peak"] < 1
        assert line["peak_memory_bytes"] > 10**8  # torch alone is more
        assert 0 < line["goodput"] < 1
