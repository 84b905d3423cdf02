"""The metrics of a run, as TensorBoard itself reads them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from ingot.errors import UsageError
from ingot.pipelines.store import LocalStore
from ingot.services import tensorboard as module
from ingot.services.tensorboard import export

KEY = "artifacts/pretrain/0123456789abcdef"
PLACE = Path("demo", "pretrain-01234567")


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    """A run whose training is under way: ten steps are in the store, measured before the first."""
    store = LocalStore(str(tmp_path / "store"))
    put(store, "runs/demo/000001/run.json", {"stages": ["pretrain", "sft"]})
    put(store, "runs/demo/000001/pretrain.key.json", {"key": KEY})
    put_chunk(store, attempt=1, steps=range(5))
    put_chunk(store, attempt=1, steps=range(5, 10))
    put_evaluation(store, 0, 3.5)
    return store


def put(store: LocalStore, key: str, body: Any) -> None:
    store.create(key, json.dumps(body).encode())


def put_chunk(store: LocalStore, attempt: int, steps: range) -> None:
    """The loss is the step's number and, behind the point, the attempt's."""
    lines = [
        {
            "step": step,
            "loss": step + attempt / 10,
            "tokens": 100,
            "seconds": 0.5,
            "attempt": attempt,
            "at": 1000.0 * attempt + step,
            "samples": [1, 2],
        }
        for step in steps
    ]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    store.create(f"{KEY}/log/{attempt:06d}-{steps[0]:08d}.jsonl", text.encode())


def put_evaluation(store: LocalStore, step: int, bits: float, key: str = KEY) -> None:
    samples = [{"prompt": "def ", "continuation": "f():\n    pass"}]
    line = {"step": step, "metrics": {"bits_per_byte": bits}, "samples": samples, "at": 999.0 + step}
    put(store, f"{key}/evaluation/{step:08d}.jsonl", line)


def read(folder: Path) -> EventAccumulator:
    return EventAccumulator(str(folder)).Reload()


def losses(folder: Path) -> list[tuple[int, float]]:
    return [(each.step, round(each.value, 3)) for each in read(folder).Scalars("loss")]


def test_tensorboard_reads_every_step_once(store: LocalStore, tmp_path: Path) -> None:
    export(store, "demo", tmp_path / "to", follow=False, say=print)
    events = read(tmp_path / "to" / PLACE)
    assert losses(tmp_path / "to" / PLACE) == [(step, step + 0.1) for step in range(10)]
    assert {each.value for each in events.Scalars("tokens_per_second")} == {200.0}
    assert [each.wall_time for each in events.Scalars("loss")][:2] == [1000.0, 1001.0]
    assert set(events.Tags()["scalars"]) == {"loss", "tokens", "seconds", "tokens_per_second"}


def test_evaluations_and_samples_stand_beside_it(store: LocalStore, tmp_path: Path) -> None:
    put_evaluation(store, 10, 2.5)
    export(store, "demo", tmp_path / "to", follow=False, say=print)
    events = read(tmp_path / "to" / PLACE / "held-out")
    assert [(each.step, each.value) for each in events.Scalars("bits_per_byte")] == [(0, 3.5), (10, 2.5)]
    [_, sample] = events.Tensors("sample 0/text_summary")
    assert sample.tensor_proto.string_val[0].decode() == "    def f():\n        pass"


def test_steps_that_are_taken_again_are_not_doubled(store: LocalStore, tmp_path: Path) -> None:
    said: list[str] = []
    folder = tmp_path / "to" / PLACE
    export(store, "demo", tmp_path / "to", follow=False, say=said.append)
    put_chunk(store, attempt=2, steps=range(7, 12))
    export(store, "demo", tmp_path / "to", follow=False, say=said.append)
    export(store, "demo", tmp_path / "to", follow=False, say=said.append)
    assert losses(folder) == [(step, step + (0.1 if step < 7 else 0.2)) for step in range(12)]
    assert [line.split()[0] for line in said] == ["3", "1"]


def test_the_same_run_with_other_settings_stands_beside(store: LocalStore, tmp_path: Path) -> None:
    export(store, "demo", tmp_path / "to", follow=False, say=print)
    put(store, "runs/demo/000002/run.json", {"stages": ["pretrain", "sft"]})
    put(store, "runs/demo/000002/pretrain.key.json", {"key": "artifacts/pretrain/ffff"})
    put_evaluation(store, 0, 9.5, "artifacts/pretrain/ffff")
    export(store, "demo", tmp_path / "to", follow=False, say=print)
    for place, bits in (("pretrain-01234567", 3.5), ("pretrain-ffff", 9.5)):
        [point] = read(tmp_path / "to" / "demo" / place / "held-out").Scalars("bits_per_byte")
        assert point.value == bits


def test_a_run_is_followed_to_its_end(
    store: LocalStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slept: list[float] = []

    def go_on(seconds: float) -> None:
        slept.append(seconds)
        put_chunk(store, attempt=1, steps=range(5 + 5 * len(slept), 10 + 5 * len(slept)))
        if len(slept) == 2:
            put(store, "runs/demo/000001/pretrain.json", {"status": "interrupted", "error": ""})

    monkeypatch.setattr(module.time, "sleep", go_on)
    export(store, "demo", tmp_path / "to", follow=True, say=print)
    assert len(losses(tmp_path / "to" / PLACE)) == 20
    assert len(slept) == 2


def test_a_run_that_is_not_there_is_refused(store: LocalStore, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no run 'dmeo'; there are: demo"):
        export(store, "dmeo", tmp_path / "to", follow=True, say=print)
    assert not (tmp_path / "to").exists()
