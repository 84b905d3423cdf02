"""Checkpoints: what is saved comes back bit for bit at any number of processes, or is refused."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoint_ranks import CONFIG, OPTIMIZERS, STEP
from torch import Tensor

from ingot.errors import IngotError
from ingot.model import Batch, TrainState, Transformer, train_step
from ingot.pipelines.artifact import Damaged, commit, load, put_file
from ingot.pipelines.runs import Fenced
from ingot.pipelines.store import LocalStore, StoreError
from ingot.pipelines.training.checkpoint import CheckpointWriter, Place, load_checkpoint, newest_step
from ingot.pipelines.training.snapshot import Snapshot
from ingot.pipelines.training.state import named_state

KEY = "artifacts/pretrain/a"


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    return LocalStore(str(tmp_path))


def trained(steps: int = STEP, optimizer: str = "adamw") -> TrainState:
    """A model with moments in its optimizer."""
    model = Transformer(CONFIG)
    model.init_weights(seed=1)
    state = TrainState(model, OPTIMIZERS[optimizer](model))
    generator = torch.Generator().manual_seed(steps)
    for _ in range(steps):
        tokens = torch.randint(CONFIG.vocabulary, (4, 9), generator=generator)
        train_step(state, [Batch(tokens[:, :-1], tokens[:, 1:])], learning_rate=0.01, clip=1.0)
    return state


def save(store: LocalStore, key: str, state: TrainState, keep: int = 2) -> CheckpointWriter:
    writer = CheckpointWriter(store, key, state, Place(), attempt=1, keep=keep)
    writer.save({"data": {"next_step": state.step}})
    writer.wait()
    return writer


def loaded(store: LocalStore, key: str, step: int = STEP, optimizer: str = "adamw") -> TrainState:
    model = Transformer(CONFIG)
    state = TrainState(model, OPTIMIZERS[optimizer](model), step)
    load_checkpoint(store, key, step, model, state.optimizer)
    return state


def assert_same(one: TrainState, other: TrainState) -> None:
    (tensors, numbers), (others, other_numbers) = (named_state(s.model, s.optimizer) for s in (one, other))
    assert numbers == other_numbers
    assert set(numbers.values()) == {float(STEP)}
    assert tensors.keys() == others.keys()
    kept = {"AdamW": 2, "Muon": 1}[type(one.optimizer).__name__]  # in the blocks, tensors a matrix
    sizes = [(name.startswith("blocks"), p.dim()) for name, p in one.model.named_parameters()]
    assert len(tensors) == sum(1 + (kept if size == (True, 2) else 2) for size in sizes)
    for name, tensor in tensors.items():
        assert bits(tensor) == bits(others[name]), name


def bits(tensor: Tensor) -> bytes:
    return tensor.detach().numpy().tobytes()


def test_one_process_two_and_three_read_what_the_others_saved(store: LocalStore, tmp_path: Path) -> None:
    states = {name: trained(optimizer=name) for name in OPTIMIZERS}
    for name, state in states.items():
        save(store, f"{name}/one", state)
    script = Path(__file__).with_name("checkpoint_ranks.py")
    command = [sys.executable, str(script)]
    ranks = [subprocess.Popen([*command, str(rank), str(tmp_path)]) for rank in range(3)]
    assert [rank.wait(timeout=120) for rank in ranks] == [0, 0, 0]
    for key, shards in (("three", 3), ("two", 2), ("replicated", 1)):
        for name, state in states.items():
            artifact = load(store, f"{name}/{key}/checkpoints/{STEP:08d}")
            assert artifact is not None
            assert len(artifact.names("rank-")) == shards
            assert_same(loaded(store, f"{name}/{key}", optimizer=name), state)
    rows = load(store, f"adamw/three/checkpoints/{STEP:08d}").json("state.json")["tensors"]  # type: ignore[union-attr]
    assert [row[1:] for row in rows["exp_avg/embedding.weight"]["rows"]] == [[0, 33], [33, 66], [66, 97]]
    assert [row[1:] for row in rows["parameter/norm.weight"]["rows"]] == [[0, 1], [1, 2]]


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_training_goes_on_from_a_checkpoint_as_if_it_had_not_stopped(
    store: LocalStore, optimizer: str
) -> None:
    state = trained(optimizer=optimizer)
    save(store, KEY, state)
    tokens = torch.arange(36).view(4, 9)
    batches = [Batch(tokens[:, :-1], tokens[:, 1:])]
    again = loaded(store, KEY, optimizer=optimizer)
    losses = [
        train_step(each, batches, learning_rate=0.01, clip=1.0).loss
        for _ in range(3)
        for each in (state, again)
    ]
    assert losses[::2] == losses[1::2]


class ShutStore(LocalStore):
    """Takes objects once its gate is open."""

    def __init__(self, uri: str) -> None:
        super().__init__(uri)
        self.gate = threading.Event()

    def create(self, key: str, data: bytes) -> bool:
        assert self.gate.wait(60)
        return super().create(key, data)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_step_waits_for_the_copies_and_not_for_the_store(
    store: LocalStore, optimizer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    state, before = trained(optimizer=optimizer), trained(optimizer=optimizer)
    shut = ShutStore(store.uri)
    writer = CheckpointWriter(shut, KEY, state, Place(), attempt=1, keep=1)
    copy = Snapshot.copy

    def copy_later(self: Snapshot, note: Mapping[str, str]) -> memoryview:
        time.sleep(1)
        return copy(self, note)

    monkeypatch.setattr(Snapshot, "copy", copy_later)
    writer.save({})
    tokens = torch.arange(36).view(4, 9)
    train_step(state, [Batch(tokens[:, :-1], tokens[:, 1:])], learning_rate=0.01, clip=1.0)
    assert writer.take_seconds_awaited() > 0
    assert newest_step(store, KEY) is None
    shut.gate.set()
    writer.wait()
    assert_same(loaded(store, KEY, optimizer=optimizer), before)
    assert not torch.equal(state.model.embedding.weight, before.model.embedding.weight)


def test_a_checkpoint_without_the_records_of_all_shards_does_not_exist(store: LocalStore) -> None:
    save(store, KEY, trained(2))
    state = trained(3)
    writer = CheckpointWriter(store, KEY, state, Place(1, 2), attempt=2, keep=1)
    writer.save({})
    writer.wait()
    assert newest_step(store, KEY) == 2


def test_what_refuses_a_commit_leaves_no_checkpoint_and_deletes_none(store: LocalStore) -> None:
    save(store, KEY, trained())
    state = trained(STEP + 1)

    def refuse() -> None:
        raise Fenced("another attempt has begun")

    writer = CheckpointWriter(store, KEY, state, Place(), attempt=2, keep=1, before_commit=refuse)
    writer.save({})
    with pytest.raises(Fenced):
        writer.wait()
    assert newest_step(store, KEY) == STEP
    assert_same(loaded(store, KEY), trained())


def test_the_newest_checkpoints_are_kept_and_the_others_objects_deleted(store: LocalStore) -> None:
    for step in (1, 2, 3, 4):
        save(store, KEY, trained(step), keep=2)
    kept = [load(store, f"{KEY}/checkpoints/{step:08d}") for step in (3, 4)]
    assert {key.split("/")[4] for key in store.list(f"{KEY}/checkpoints/")} == {"00000003", "00000004"}
    named = {piece.key for each in kept if each for file in each.files.values() for piece in file.pieces}
    assert set(store.list("objects/")) == named
    assert_same(loaded(store, KEY, 3), trained(3))


def test_retention_spares_objects_of_other_trainings_with_the_same_state(store: LocalStore) -> None:
    save(store, KEY, trained(3), keep=1)
    save(store, "artifacts/pretrain/b", trained(3), keep=1)
    save(store, KEY, trained(4), keep=1)
    assert_same(loaded(store, "artifacts/pretrain/b"), trained(3))


def test_a_checkpoint_of_another_optimizer_is_refused_with_the_mend(store: LocalStore) -> None:
    save(store, KEY, trained())
    said = (
        f"^{KEY}/checkpoints/00000003 holds the state of another optimizer: AdamW, not Muon; train with the"
    )
    with pytest.raises(IngotError, match=f"{said} .* delete all below {KEY}/checkpoints/ to begin anew$"):
        loaded(store, KEY, optimizer="muon")


@pytest.mark.parametrize("file", ["rank-00000-of-00001.safetensors", "state.json"])
@pytest.mark.parametrize("harm", ["is missing", "was altered"])
def test_a_damaged_checkpoint_is_refused_by_name(store: LocalStore, file: str, harm: str) -> None:
    save(store, KEY, trained())
    artifact = load(store, f"{KEY}/checkpoints/{STEP:08d}")
    assert artifact is not None
    [piece] = artifact.files[file].pieces
    path = Path(store.uri) / piece.key
    if harm == "is missing":
        path.unlink()
    else:
        data = bytearray(path.read_bytes())
        data[-1] ^= 1
        path.write_bytes(data)
    mend = f"restore the object, or delete it and all below {KEY}/checkpoints/00000003/, and run again"
    with pytest.raises(Damaged) as raised:
        loaded(store, KEY)
    assert f"{KEY}/checkpoints/00000003/{file} is damaged: its object {piece.key} {harm}" in str(raised.value)
    assert mend in str(raised.value)


def test_what_made_a_save_fail_is_raised_at_the_next_step(store: LocalStore, tmp_path: Path) -> None:
    state = trained()
    (tmp_path / "objects").write_text("no folder")
    writer = CheckpointWriter(store, KEY, state, Place(), attempt=1, keep=1)
    writer.save({})
    with pytest.raises(StoreError, match="can't write objects/"):
        writer.wait()
    with pytest.raises(StoreError, match="can't write objects/"):
        writer.check()
    assert newest_step(store, KEY) is None


def test_files_hold_tensors_alone(store: LocalStore) -> None:
    save(store, KEY, trained())
    artifact = load(store, f"{KEY}/checkpoints/{STEP:08d}")
    assert artifact is not None
    assert artifact.names() == ["rank-00000-of-00001.safetensors", "state.json"]
    data = artifact.read("rank-00000-of-00001.safetensors")
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    assert header["__metadata__"] == {"checkpoint": f"{KEY} step 3 shard 0 of 1"}
    assert artifact.json("state.json")["data"] == {"next_step": 3}


def alter_state(store: LocalStore, change: Any) -> None:
    """The checkpoint with another `state.json`, whose manifest and digests are right."""
    save(store, KEY, trained())
    artifact = load(store, f"{KEY}/checkpoints/{STEP:08d}")
    assert artifact is not None
    changed = change(artifact.json("state.json"))
    text = changed if isinstance(changed, bytes) else json.dumps(changed).encode()
    files = {**artifact.files, "state.json": put_file(store, text)}
    store.delete(f"{artifact.key}/manifest.json")
    commit(store, artifact.key, "checkpoint", artifact.fingerprint, files, {}, {})


def with_rows(state: dict[str, Any], rows: Any) -> dict[str, Any]:
    name = next(iter(state["tensors"]))
    return {**state, "tensors": {**state["tensors"], name: {**state["tensors"][name], "rows": rows}}}


@pytest.mark.parametrize(
    "change",
    [
        lambda state: b"[" * 50_000,
        lambda state: b"{}",
        lambda state: b"\xff",
        lambda state: {**state, "tensors": []},
        lambda state: {
            **state,
            "tensors": {**state["tensors"], "momentum/none": {"shape": [], "dtype": "x"}},
        },
        lambda state: {
            **state,
            "tensors": {**state["tensors"], "x/none": {"shape": [1], "dtype": "float32", "rows": []}},
        },
        lambda state: {**state, "numbers": {"step/none": 1.0}},
        lambda state: {**state, "numbers": {"step": "x"}},
        lambda state: {**state, "optimizer_class": None},
        lambda state: with_rows(state, []),
        lambda state: with_rows(state, [["rank-00000-of-00001.safetensors", 0, "9"]]),
        lambda state: with_rows(state, [["../../x", 0, 10_000]]),
        lambda state: with_rows(state, [["state.json", 0, 10_000]]),
        lambda state: with_rows(state, [["rank-00000-of-00001.safetensors", 5, 10_000]]),
        lambda state: with_rows(state, [["rank-00000-of-00001.safetensors", -5, 10_000]]),
    ],
)
def test_a_state_that_ingot_did_not_write_is_damaged(store: LocalStore, change: Any) -> None:
    alter_state(store, change)
    with pytest.raises(Damaged, match=r"was altered|lists no file"):
        loaded(store, KEY)
