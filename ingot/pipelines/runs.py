"""Runs: a name, its attempts, and what became of every stage of each.

`runs/<name>/<attempt>/run.json` holds the recipe, the environment and the state of the code; beside it
`<stage>.begun.json` and, at its end, `<stage>.json`. All are created once: a killed attempt simply ends.

A higher attempt fences a lower one off: before each commit an attempt looks for one, and stops where there
is. So a driver that was taken for dead, and was only held, does no harm when it goes on. Between that look
and the commit lies one request; what slips through it are the bytes that the stage's fingerprint asks for,
whoever makes them."""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

from pydantic import StringConstraints

import ingot
from ingot.errors import IngotError, UsageError
from ingot.pipelines.artifact import Artifact, load
from ingot.pipelines.recipe import Recipe
from ingot.pipelines.records import check_fields, read_object
from ingot.pipelines.store import ObjectMissing, Store

_ATTEMPT = re.compile(r"([0-9]{6,12})/run\.json")
PACKAGES = ("ray", "torch", "transformers", "tokenizers", "numpy", "pyarrow")


class Fenced(IngotError):
    """A higher attempt of the run has begun: this one commits nothing more."""


@dataclass(frozen=True)
class Attempt:
    """One call of `ingot run`, as the store records it. It may be named anew wherever the store is, as by
    the workers of a training."""

    store: Store
    run: str
    number: int

    @property
    def key(self) -> str:
        return f"runs/{self.run}/{self.number:06d}"

    def refuse_if_fenced(self) -> None:
        """Raises Fenced where a higher attempt of the same run has begun. For before each commit."""
        newest = max(attempts_of(self.store, self.run), default=0)
        if newest > self.number:
            raise Fenced(
                f"run {self.run}: attempt {newest} has begun, so attempt {self.number} stops and commits "
                f"nothing more; see: ingot runs show {self.run} --store {self.store.uri}"
            )

    def begin(self, stage: str) -> None:
        self._record(f"{stage}.begun", {"at": time.time()})

    def locate(self, stage: str, key: str) -> None:
        """The stage is at work on the artifact `key`."""
        self._record(f"{stage}.key", {"key": key})

    def commit(self, stage: str, artifact: Artifact, skipped: bool, seconds: float) -> None:
        self._record(
            stage,
            {
                "status": "skipped" if skipped else "committed",
                "seconds": seconds,
                "artifact": artifact.key,
                "fingerprint": artifact.fingerprint,
                "digest": artifact.digest,
            },
        )

    def fail(self, stage: str, error: BaseException, seconds: float) -> None:
        status = "interrupted" if isinstance(error, KeyboardInterrupt) else "failed"
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        self._record(stage, {"status": status, "seconds": seconds, "error": first})

    def _record(self, name: str, body: dict[str, Any]) -> None:
        self.store.create(f"{self.key}/{name}.json", json.dumps(body).encode())


def begin_attempt(store: Store, recipe: Recipe, stages: list[str], number: int | None = None) -> Attempt:
    """Creates the run's next attempt; two calls at once get different numbers. Or creates the one of this
    number: raises IngotError where it, or a higher one, has begun already."""
    body = {
        "run": recipe.name,
        "at": time.time(),
        "host": platform.node(),
        "pid": os.getpid(),
        "stages": stages,
        "recipe": recipe.model_dump(mode="json"),
        "git": git_state(),
        "python": sys.version.split()[0],
        "packages": {"ingot": ingot.__version__, **{name: version(name) for name in PACKAGES}},
    }
    given = number is not None
    attempt = Attempt(store, recipe.name, number or max(attempts_of(store, recipe.name), default=0) + 1)
    if given:
        attempt.refuse_if_fenced()
    while not store.create(f"{attempt.key}/run.json", json.dumps(body).encode()):
        if given:
            raise IngotError(
                f"run {attempt.run}: attempt {attempt.number} has begun elsewhere; submit the run again to "
                "begin the next"
            )
        attempt = replace(attempt, number=attempt.number + 1)
    return attempt


def attempts_of(store: Store, run: str) -> list[int]:
    """The numbers of the run's attempts."""
    found = (_ATTEMPT.fullmatch(key.removeprefix(f"runs/{run}/")) for key in store.list(f"runs/{run}/"))
    return [int(match[1]) for match in found if match]


def artifact_keys(store: Store, run: str) -> dict[str, str]:
    """Stage → the key of its artifact, committed or under way, of those that the run's last attempt has
    come to. Raises UsageError where there is no such run."""
    attempt = last_attempt(store, run)
    keys: dict[str, str] = {}
    for stage in _run_of(attempt)["stages"]:
        with suppress(ObjectMissing):
            record = _stage_record(store, attempt.key, stage)
            if "artifact" in record:  # else it failed
                keys[stage] = record["artifact"]
                continue
        with suppress(ObjectMissing):
            keys[stage] = read_object(store, f"{attempt.key}/{stage}.key.json", key=str)["key"]
    return keys


def has_ended(store: Store, run: str) -> bool:
    """Whether the run's last attempt is done, or failed and said so; one that was killed says nothing."""
    attempt = last_attempt(store, run)
    stages = _run_of(attempt)["stages"]
    shown = {_show_stage(store, attempt.key, stage)["status"] for stage in stages}
    return not shown & {"waiting", "begun"} or bool(shown & {"failed", "interrupted"})


def last_attempt(store: Store, run: str) -> Attempt:
    """Raises UsageError where there is no such run."""
    numbers = attempts_of(store, run)
    if not numbers:
        there = list_runs(store)
        raise UsageError(f"store {store.uri}: no run {run!r}; there are: {', '.join(there) or 'none'}")
    return Attempt(store, run, max(numbers))


def list_runs(store: Store) -> list[str]:
    """The names of all runs in the store."""
    return sorted({key.split("/")[1] for key in store.list("runs/")})


def show_run(store: Store, name: str) -> dict[str, Any]:
    """The run's last attempt: `{"run", "store", "stages": [{"stage", "fingerprint", "digest", "status",
    "seconds", "metrics"}…]}`. `seconds` is what the call that committed the artifact took."""
    attempt = last_attempt(store, name)
    key = attempt.key
    run = _run_of(attempt, at=float, git=dict[str, Any] | None, packages=dict[str, Any])
    stages = [_show_stage(store, key, stage) for stage in run["stages"]]
    return {
        "run": name,
        "store": store.uri,
        "attempt": attempt.number,
        "at": run["at"],
        "git": run["git"],
        "packages": run["packages"],
        "stages": stages,
    }


def _show_stage(store: Store, key: str, stage: str) -> dict[str, Any]:
    shown: dict[str, Any] = {
        "stage": stage,
        "fingerprint": None,
        "digest": None,
        "seconds": None,
        "metrics": {},
    }
    try:
        record = _stage_record(store, key, stage)
    except ObjectMissing:
        return {**shown, "status": "begun" if store.exists(f"{key}/{stage}.begun.json") else "waiting"}
    if "artifact" not in record:
        return {**shown, **record}
    shown |= {name: record[name] for name in ("fingerprint", "digest", "status", "seconds")}
    artifact = load(store, record["artifact"])
    if artifact is None:
        return {**shown, "status": "deleted"}
    return {**shown, "seconds": artifact.made.get("seconds"), "metrics": artifact.metrics}


def _run_of(attempt: Attempt, **fields: Any) -> dict[str, Any]:
    """The attempt's `run.json`: its stages, and these fields. Raises Damaged."""
    stage = Annotated[str, StringConstraints(pattern=r"^[a-z0-9_-]{1,64}$")]  # it becomes a part of keys
    return read_object(attempt.store, f"{attempt.key}/run.json", stages=list[stage], **fields)


def _stage_record(store: Store, key: str, stage: str) -> dict[str, Any]:
    """What became of the stage. Raises ObjectMissing where it has not ended, and Damaged."""
    record = read_object(store, f"{key}/{stage}.json", status=str)
    where = f"{store.uri}/{key}/{stage}.json"
    if "artifact" in record:
        check_fields(record, where, artifact=str, fingerprint=str, digest=str, seconds=float)
    elif "seconds" in record:
        check_fields(record, where, seconds=float)
    return record


def git_state() -> dict[str, Any] | None:
    """The commit of the code and whether it was changed since; None where it is no checkout."""
    folder = Path(ingot.__file__).parent

    def git(*words: str) -> str:
        return subprocess.run(
            ["git", *words], cwd=folder, capture_output=True, text=True, timeout=10, check=True
        ).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", "__init__.py")  # another repository may be around an installation
        return {"commit": git("rev-parse", "HEAD"), "changed": bool(git("status", "--porcelain", "."))}
    except (OSError, subprocess.SubprocessError):
        return None
