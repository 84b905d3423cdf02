"""Sharded checkpoints in the store, written while training goes on, read back at any number of workers.

Each checkpoint is an artifact below its training, `<key>/checkpoints/<step>`: one safetensors file a shard,
and `state.json`, which says what stands where and everything else (no pickle, unlike the storage that comes
with torch.distributed.checkpoint). A thread copies the rows this process holds, beside the next step's
passes, which only read them, and then hashes and stores them and creates a record; all that training may wait
for is the copy, before the optimizer changes what is copied. When the records of all shards are there, the
first shard's thread commits the manifest: before that the checkpoint does not exist, so what is killed when
doesn't matter. The newest committed step wins."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import safetensors.torch
import torch
from pydantic import BaseModel, ConfigDict, Strict

from ingot.errors import IngotError
from ingot.model import TrainState
from ingot.pipelines.artifact import Artifact, Damaged, File, commit, load, put_file, put_json
from ingot.pipelines.records import damaged, parse_object, read_object
from ingot.pipelines.store import ObjectMissing, Store, StoreError
from ingot.pipelines.training.snapshot import Snapshot
from ingot.pipelines.training.state import Part, make_room, named_state, part_of

FORMAT = 1


class _Stored(BaseModel):
    """Where a tensor stands: its shape, and (file, first row, row after the last) of each of its parts."""

    model_config = ConfigDict(strict=True)

    shape: list[int]
    dtype: str
    rows: list[Annotated[tuple[str, int, int], Strict(False)]]  # JSON has lists


@dataclass(frozen=True)
class Place:
    """Which process this is: of `shards` that share a model, and of as many replicas as there are."""

    shard: int = 0
    shards: int = 1
    replica: int = 0


def newest_step(store: Store, key: str) -> int | None:
    """The newest committed step of the training at `key`, or None."""
    return max(_committed(store, key), default=None)


def committed_steps(store: Store, key: str) -> list[int]:
    """The steps of all committed checkpoints of the training at `key`, the newest first."""
    return sorted(_committed(store, key), reverse=True)


def load_checkpoint(
    store: Store, key: str, step: int, model: torch.nn.Module, optimizer: torch.optim.Optimizer
) -> dict[str, Any]:
    """Fills model and optimizer from the checkpoint of `step` and returns its `state.json`. Only files that
    hold rows this process needs are read, each whole and verified. Raises Damaged, IngotError where it is of
    another model or another optimizer, and StoreError where another run of the training has come further and
    deletes it."""
    artifact = load(store, _folder(key, step))
    if artifact is None:
        raise _superseded(store, key, step)
    try:
        return _fill(artifact, model, optimizer)
    except Damaged as error:
        if store.exists(f"{artifact.key}/manifest.json"):
            raise
        raise _superseded(store, key, step) from error


def _fill(artifact: Artifact, model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    state = _state_of(artifact)
    _refuse_another(artifact, state, model, optimizer)
    known = {name for name, _ in model.named_parameters()}
    for name in (*state["tensors"], *state["numbers"]):
        if name.partition("/")[2] not in known:
            raise _altered(artifact, "state.json", f"{name[:200]!a} is of no parameter of the model")
    tensors = make_room(model, optimizer, list(state["tensors"]), state["numbers"])
    needed: dict[str, list[tuple[str, Part, int, int, int]]] = {}
    for name, tensor in tensors.items():
        part = part_of(tensor)
        missing = part.end - part.start
        for file, start, end in state["tensors"][name]["rows"]:
            first, last = max(start, part.start), min(end, part.end)
            if first < last:
                needed.setdefault(file, []).append((name, part, start, first, last))
                missing -= last - first
        if missing:
            raise _altered(artifact, "state.json", f"it has not every row of {name} once")
    for file, copies in sorted(needed.items()):
        try:
            stored = safetensors.torch.load(artifact.read(file))
            for name, part, start, first, last in copies:
                rows = stored[name][first - start : last - start]
                place = part.local[first - part.start : last - part.start]
                if (rows.shape, rows.dtype) != (place.shape, place.dtype):
                    raise ValueError(f"{name} is not of the shape and type that state.json says")
                place.copy_(rows)
        except (safetensors.SafetensorError, KeyError, ValueError, IndexError) as error:
            raise _altered(artifact, file, str(error)) from None
    return state


def _altered(artifact: Artifact, file: str, why: str) -> Damaged:
    return damaged(f"{artifact.store.uri}/{artifact.key}/{file}", why)


def _state_of(artifact: Artifact) -> dict[str, Any]:
    """The checkpoint's `state.json`. Raises Damaged where it is not what a CheckpointWriter writes."""
    where = f"{artifact.store.uri}/{artifact.key}/state.json"
    return parse_object(
        artifact.read("state.json"),
        where,
        step=int,
        optimizer_class=str,
        tensors=dict[str, _Stored],
        numbers=dict[str, float],
    )


def _refuse_another(
    artifact: Artifact, state: Mapping[str, Any], model: torch.nn.Module, optimizer: torch.optim.Optimizer
) -> None:
    """Raises IngotError where a checkpoint is not of such a model and such an optimizer."""
    folder = artifact.key.rpartition("/")[0]
    mend = f"train with the settings that it was made with, or delete all below {folder}/ to begin anew"
    here = {f"parameter/{name}": list(parameter.shape) for name, parameter in model.named_parameters()}
    tensors = state["tensors"].items()
    there = {name: entry["shape"] for name, entry in tensors if name.startswith("parameter/")}
    differing = [name for name in {**here, **there} if here.get(name) != there.get(name)]
    if differing:
        word = differing[0]
        raise IngotError(
            f"{artifact.key} is a checkpoint of another architecture: {len(differing)} tensors differ, the "
            f"first is {word.partition('/')[2]}, {there.get(word) or 'missing'} there and "
            f"{here.get(word) or 'missing'} in this model; {mend}"
        )
    kind, other = type(optimizer).__name__, state["optimizer_class"]
    if other != kind:
        raise IngotError(f"{artifact.key} holds the state of another optimizer: {other}, not {kind}; {mend}")


class CheckpointWriter:
    """Saves the checkpoints of the training whose state is `state`, one at a time. `attempt` names the group
    of workers that began together: shards of different groups must not be mixed. `before_commit` may refuse,
    by raising. The checkpoint of the step `always` is kept for good. While a state is copied, the optimizer's
    next step waits."""

    def __init__(
        self,
        store: Store,
        key: str,
        state: TrainState,
        place: Place,
        attempt: int,
        keep: int,
        before_commit: Callable[[], object] = lambda: None,
        always: int | None = None,
    ) -> None:
        self.store, self.key, self.state = store, key, state
        self.place, self.attempt, self.keep = place, attempt, keep
        self.before_commit, self.always = before_commit, always
        self.step: int | None = None  # of the last save
        self._snapshot, self._awaited = Snapshot(), 0.0
        state.optimizer.register_step_pre_hook(self._wait_for_copies)
        self._thread: threading.Thread | None = None
        self._failure: BaseException | None = None

    def save(self, facts: Mapping[str, Any], log: tuple[str, bytes] | None = None) -> None:
        """Saves the state as it is now, in a thread. Waits for an earlier save that is not done. Whoever but
        the optimizer changes the state has to `wait`. `facts` are put into `state.json`; `log`, a key and an
        object, is stored first."""
        self.wait()
        self.step = self.state.step
        if self.place.replica:
            return
        tensors, numbers = named_state(self.state.model, self.state.optimizer)
        parts = {name: part_of(tensor) for name, tensor in tensors.items()}
        self._snapshot.begin({name: part.local for name, part in parts.items() if part.start < part.end})
        facts = {"step": self.step, "optimizer_class": type(self.state.optimizer).__name__, **facts}
        self._thread = threading.Thread(
            target=self._run, args=(self.step, parts, numbers, facts, log), daemon=True
        )
        self._thread.start()

    def _wait_for_copies(self, *_: Any) -> None:
        began = time.perf_counter()
        self._snapshot.wait()
        self._awaited += time.perf_counter() - began

    def take_seconds_awaited(self) -> float:
        """For how long the optimizer waited for copies since this was last asked."""
        seconds, self._awaited = self._awaited, 0.0
        return seconds

    def check(self) -> None:
        """Raises what made a save fail, if one did."""
        if self._failure is not None:
            raise self._failure

    def wait(self) -> None:
        """Until the last save is stored. Raises what made it fail. The first shard's wait is over when the
        checkpoint is committed."""
        if self._thread is not None:
            self._thread.join()
        self.check()

    def _run(self, *work: Any) -> None:
        try:
            self._store(*work)
        except BaseException as error:  # of a thread nobody waits for: the next step raises it
            self._failure = error

    def _store(
        self,
        step: int,
        parts: dict[str, Part],
        numbers: dict[str, float],
        facts: dict[str, Any],
        log: tuple[str, bytes] | None,
    ) -> None:
        began = time.perf_counter()
        # What it is a part of stands in the file: objects are named by content, and those of this
        # checkpoint must be nobody else's, so that they can be deleted with it.
        whose = f"{self.key} step {step} shard {self.place.shard} of {self.place.shards}"
        data = self._snapshot.copy({"checkpoint": whose})
        if log is not None:
            self.store.create(*log)
        record = {
            "file": put_file(self.store, data).to_json(),
            "rows": {name: [part.start, part.end] for name, part in parts.items() if part.start < part.end},
        }
        self._record(step, f"{self.place.shard:05d}", record)
        if self.place.shard == 0:
            self._commit(step, parts, numbers, facts, began)

    def _commit(
        self,
        step: int,
        parts: dict[str, Part],
        numbers: dict[str, float],
        facts: dict[str, Any],
        began: float,
    ) -> None:
        records = [self._wait_for_record(step, shard) for shard in range(self.place.shards)]
        names = [f"rank-{shard:05d}-of-{self.place.shards:05d}.safetensors" for shard in range(len(records))]
        tensors = {
            name: {
                "shape": list(part.shape),
                "dtype": str(part.local.dtype).removeprefix("torch."),
                "rows": [
                    [file, *record["rows"][name]]
                    for file, record in zip(names, records, strict=True)
                    if name in record["rows"]
                ],
            }
            for name, part in parts.items()
        }
        state = {"format": FORMAT, "training": self.key, "shards": self.place.shards, **facts}
        files = {name: File.from_json(record["file"]) for name, record in zip(names, records, strict=True)}
        files["state.json"] = put_json(self.store, {**state, "tensors": tensors, "numbers": numbers})
        folder, fingerprint = _folder(self.key, step), self.key.rpartition("/")[2]
        self._record(step, "state", {"file": files["state.json"].to_json()})
        self.before_commit()
        made = {"attempt": self.attempt, "seconds_written": time.perf_counter() - began}
        commit(self.store, folder, "checkpoint", fingerprint, files, {"step": step}, made)
        retire(self.store, self.key, self.keep, self.always)

    def _wait_for_record(self, step: int, shard: int) -> dict[str, Any]:
        pause = 0.01
        while True:
            try:
                key = self._record_key(step, f"{shard:05d}")
                return read_object(self.store, key, file=dict[str, Any], rows=dict[str, list[int]])
            except ObjectMissing:
                # A worker that died or could not save ends the whole group, and this thread with it.
                time.sleep(pause)
                pause = min(1.0, pause * 1.5)
                if pause == 1.0 and (newest_step(self.store, self.key) or 0) > step:
                    raise _superseded(self.store, self.key, step) from None

    def _record(self, step: int, what: str, record: Mapping[str, Any]) -> None:
        self.store.create(self._record_key(step, what), json.dumps(record).encode())

    def _record_key(self, step: int, what: str) -> str:
        return f"{_folder(self.key, step)}/records/{self.attempt:06d}-{what}.json"


def retire(store: Store, key: str, keep: int, always: int | None = None) -> None:
    """Deletes all but that of the step `always` and the `keep` newest committed checkpoints of the training,
    and what earlier attempts left of steps before those. Objects that a checkpoint still names stay."""
    kept = committed_steps(store, key)[:keep]
    folders = _folders(store, key)
    _delete(store, folders, [step for step in folders if step < kept[-1] and step != always])


def delete_checkpoints(store: Store, key: str, steps: list[int]) -> None:
    """Deletes the checkpoints of these steps, damaged ones too, so that they can be saved again. Objects that
    another checkpoint names stay."""
    folders = _folders(store, key)
    _delete(store, folders, [step for step in steps if step in folders])


def _folders(store: Store, key: str) -> dict[int, list[str]]:
    """The keys of what stands below each step's checkpoint, committed or not."""
    folders: dict[int, list[str]] = {}
    for name in store.list(f"{key}/checkpoints/"):
        folders.setdefault(int(name.removeprefix(f"{key}/checkpoints/").partition("/")[0]), []).append(name)
    return folders


def _delete(store: Store, folders: dict[int, list[str]], steps: list[int]) -> None:
    if not steps:
        return
    named = {step: _objects(store, keys) for step, keys in folders.items()}
    needed = set().union(*(objects for step, objects in named.items() if step not in steps))
    for step in sorted(steps):
        # The manifest first: a checkpoint is whole or it is none. The records last: they name what is to go.
        keys = sorted(folders[step], key=lambda name: not name.endswith("/manifest.json"))
        manifests = [name for name in keys if name.endswith("/manifest.json")]
        for name in [*manifests, *sorted(named[step] - needed), *keys[len(manifests) :]]:
            store.delete(name)


def _superseded(store: Store, key: str, step: int) -> StoreError:
    """Worth another attempt, which begins where the other run is or finds the training done."""
    where = f"{store.uri}/{_folder(key, step)}"
    return StoreError(f"{where}: deleted by another run of this training, which has come further")


def _objects(store: Store, keys: list[str]) -> set[str]:
    """The objects that manifests and records name; those that one names which was altered are left out, as
    the others of the same checkpoint name them too."""
    objects: set[str] = set()
    for key in keys:
        try:
            if key.endswith("/manifest.json"):
                files = list(read_object(store, key, files=dict[str, Any])["files"].values())
            else:
                files = [read_object(store, key, file=dict[str, Any])["file"]]
            objects |= {piece.key for file in files for piece in File.from_json(file).pieces}
        except (ObjectMissing, Damaged):
            # deleted by a worker of an earlier attempt that was not dead yet, or altered
            continue
    return objects


def _committed(store: Store, key: str) -> list[int]:
    manifests = [name for name in store.list(f"{key}/checkpoints/") if name.endswith("/manifest.json")]
    return [int(name.split("/")[-2]) for name in manifests]


def _folder(key: str, step: int) -> str:
    return f"{key}/checkpoints/{step:08d}"
