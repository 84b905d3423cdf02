"""Units of work: a row of a Ray Data dataset is a unit, and its task leaves a record in the store.

A task reads its inputs, computes, puts its objects and then creates a small record at a name derived from
the unit. A task that is run again finds the record and does nothing. Ray Data gives scheduling, streaming
and retries; data moves between steps through the store alone."""

from __future__ import annotations

import json
import os
import platform
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from functools import cache, cached_property, partial
from pathlib import Path
from typing import Any, Protocol

from ingot.errors import IngotError
from ingot.pipelines import tasks
from ingot.pipelines.artifact import Damaged, File, canonical_digest, entries_of
from ingot.pipelines.cluster import home_of, refuse_elsewhere
from ingot.pipelines.records import read_object
from ingot.pipelines.runs import Attempt
from ingot.pipelines.store import ObjectMissing, Store, open_store

FENCE_SECONDS = 10  # between two looks for a higher attempt while units are done


class TaskFailed(Exception):
    """A task raised what nobody foresaw: its type, words and place; its traceback stands in a note."""


class Progress(Protocol):
    """What the path tells the person who watches."""

    def begin_stage(self, stage: str) -> None:
        """A stage begins; its steps follow."""

    def end_stage(self, stage: str, metrics: Mapping[str, Any], skipped: bool, seconds: float) -> None:
        """Its artifact is committed, or was found committed."""

    def step(self, name: str, total: int, unit: str = "units") -> None:
        """A step of `total` units begins."""

    def advance(self, count: int = 1, **figures: float) -> None:
        """`count` more are done; `figures` are running totals worth showing, such as bytes=…"""

    def say(self, line: str, cut: bool = False) -> None:
        """One line that stays; `cut` to the width there is, where more would be too much."""


@dataclass(frozen=True)
class Unit:
    """One unit of work. `name` is unique within its step and the same on every run; `body` is JSON."""

    name: str
    body: Mapping[str, Any]


Work = Callable[[Store, Mapping[str, Any]], Mapping[str, Any]]
"""(store, the unit's body) -> the unit's record: JSON, and a function of the body alone."""


@dataclass(frozen=True)
class Actors:
    """Work that needs something large in memory, such as a model: each actor of a pool calls `make(store)`
    once, and does its units with what that gives."""

    make: Callable[[Store], Work]
    cpus: float = 1  # of one actor
    gpus: float = 0


@dataclass(frozen=True)
class Workspace:
    """Where a stage works: its place in the store, and how its tasks are run."""

    store: Store
    key: str  # artifacts/<stage>/<fingerprint>
    progress: Progress
    workers: int | None = None  # tasks at once
    run_name: str = ""
    attempt: Attempt | None = None  # of the run
    doubted: bool = False  # whether what records name may have been deleted with another artifact

    def refuse_if_fenced(self) -> None:
        """Raises Fenced where a higher attempt of the run has begun. For before each commit."""
        if self.attempt:
            self.attempt.refuse_if_fenced()

    def run(
        self,
        step: str,
        units: Sequence[Unit],
        work: Work | Actors,
    ) -> list[dict[str, Any]]:
        """Runs `work(store, unit.body)` for every unit that has no record yet, on the cluster, and returns
        the records of all units in the order given. What `work` returns must be JSON and a function of the
        unit alone; where and when it ran is kept beside it under `ran`."""
        prefix = f"{self.key}/units/{step}/"
        names = {unit.name for unit in units}
        assert len(names) == len(units), f"two units of {step} share a name"
        done = {key.removeprefix(prefix).removesuffix(".json") for key in self.store.list(prefix)} & names
        self.progress.step(step, len(units))
        with ThreadPoolExecutor(8) as pool:
            earlier = pool.map(lambda name: read_object(self.store, f"{prefix}{name}.json"), sorted(done))
            records = dict(zip(sorted(done), earlier, strict=True))
            if self.doubted:
                whole = pool.map(self._is_whole, list(records.values()))
                for name in [name for name, there in zip(list(records), whole, strict=True) if not there]:
                    self.store.delete(f"{prefix}{name}.json")
                    del records[name]
                    done.remove(name)
        if done:
            self.progress.advance(len(done))
        todo = [unit for unit in units if unit.name not in done]
        if todo:
            # The driver looks, not each task: a unit's record is the same whoever's task creates it.
            self.refuse_if_fenced()
            self._run_tasks(prefix, todo, work, records)
        return [records[unit.name] for unit in units]

    def run_shared(
        self, place: str, step: str, bodies: Sequence[Mapping[str, Any]], work: Work
    ) -> list[dict[str, Any]]:
        """As `run`, for work that is worth keeping for other artifacts: the records stand below
        `shared/<place>/`, each under the digest of its body, and serve whoever asks for the same. One that
        names objects which are gone is made anew."""
        units = [Unit(canonical_digest(body)[:32], body) for body in bodies]
        return replace(self, key=f"shared/{place}", doubted=True).run(step, units, work)

    def forget_if_lost(self) -> None:
        """Deletes the artifact's manifest, and the records of its units, where they name objects that are
        gone: what is run next makes them anew."""
        if self._forget(f"{self.key}/manifest.json"):
            for key in list(self.store.list(f"{self.key}/units/")):
                self._forget(key)

    def _forget(self, key: str) -> bool:
        with suppress(ObjectMissing):
            if not self._is_whole(read_object(self.store, key)):
                self.store.delete(key)
                return True
        return False

    def _is_whole(self, body: Any) -> bool:
        """Whether all objects that a record or a manifest names are there."""
        pieces = [piece for entry in entries_of(body) for piece in File.from_json(entry).pieces]
        return all(self.store.exists(piece.key) for piece in pieces)

    def _run_tasks(
        self,
        prefix: str,
        todo: Sequence[Unit],
        work: Work | Actors,
        records: dict[str, dict[str, Any]],
    ) -> None:
        from ray.exceptions import ActorDiedError, OutOfMemoryError, WorkerCrashedError

        place = (self.store.uri, home_of(self.store), prefix)
        rows = [{"name": unit.name, "body": json.dumps(dict(unit.body))} for unit in todo]
        if isinstance(work, Actors):
            done = tasks.run_actors(rows, _Actor, (*place, work.make), self.workers, work.cpus, work.gpus)
        else:
            done = tasks.run_tasks(rows, partial(_task, *place, work), self.workers)
        looked = time.monotonic()
        try:
            with closing(done):
                for row in done:
                    records[row["name"]] = _record_of(row)
                    self.progress.advance(1)
                    if time.monotonic() - looked > FENCE_SECONDS:
                        self.refuse_if_fenced()
                        looked = time.monotonic()
        except (WorkerCrashedError, OutOfMemoryError, ActorDiedError) as error:
            raise IngotError(
                f"{prefix}: the worker of a unit died {tasks.RETRIES + 1} times; its last words are in the "
                "newest python-core-worker-*.log among Ray's logs. Where it was killed for memory, run fewer "
                "at once with --set workers=1"
            ) from error


def _record_of(row: Mapping[str, Any]) -> dict[str, Any]:
    """The record that a task handed back. Raises what it ran into instead."""
    record: dict[str, Any] = json.loads(row["record"])
    if "error" in record:
        raise IngotError(record["error"])
    if "fault" in record:
        fault = TaskFailed(record["fault"])
        fault.add_note(record["trace"])
        raise fault
    return record


def _task(uri: str, home: str | None, prefix: str, work: Work, row: dict[str, Any]) -> dict[str, str]:
    record = _run_unit(_store_of_process(uri), home, prefix, row["name"], json.loads(row["body"]), work)
    return {"name": row["name"], "record": json.dumps(record)}


class _Actor:
    """A process that makes its work at the first unit and keeps it."""

    def __init__(self, uri: str, home: str | None, prefix: str, make: Callable[[Store], Work]) -> None:
        self.store, self.home, self.prefix, self.make = open_store(uri), home, prefix, make

    @cached_property
    def work(self) -> Work:
        return self.make(self.store)

    def _work(self, *unit: Any) -> Mapping[str, Any]:
        return self.work(*unit)  # made at the first unit, where its errors are told

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, list[str]]:
        [name], [body] = batch["name"], batch["body"]
        record = _run_unit(self.store, self.home, self.prefix, name, json.loads(body), self._work)
        return {"name": [name], "record": [json.dumps(record)]}


@cache
def _store_of_process(uri: str) -> Store:
    # a client of S3 takes half a second to make: one for each worker process, not one for each unit
    return open_store(uri)


def _run_unit(
    store: Store, home: str | None, prefix: str, name: str, body: Mapping[str, Any], work: Work
) -> dict[str, Any]:
    key = f"{prefix}{name}.json"
    try:
        refuse_elsewhere(store, home)
        if not store.exists(key):
            began = time.time()
            result = dict(work(store, body))
            result["ran"] = {"host": platform.node(), "pid": os.getpid(), "seconds": time.time() - began}
            store.create(key, json.dumps(result).encode())
        return read_object(store, key)
    except IngotError as error:
        # a person's error, not a fault of the machine: handed back whole, and not worth a retry
        where = f" (at {key})" if isinstance(error, Damaged) else ""
        return {"error": f"{error}{where}"}
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # a panic in a library's Rust is none of Exception's
        # handed back too: Ray Data would bury what was raised, and where, under its own words
        said = (str(error).strip().splitlines() or [""])[0]
        place = traceback.extract_tb(error.__traceback__)[-1]
        fault = f"{type(error).__name__}: {said} ({Path(place.filename).name}:{place.lineno}), at {key}"
        return {"fault": fault, "trace": traceback.format_exc()}
