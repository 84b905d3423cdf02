"""Runs: a name, its attempts, and what became of every stage of each.

`runs/<name>/<attempt>/run.json` holds the recipe, the environment and the state of the code; beside it
`<stage>.begun.json` and, at its end, `<stage>.json`. All are created once: a killed attempt simply ends."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import ingot
from ingot.errors import UsageError
from ingot.pipelines.artifact import Artifact
from ingot.pipelines.recipe import Recipe
from ingot.pipelines.store import ObjectMissing, Store

PACKAGES = ("ray", "torch", "transformers", "tokenizers", "numpy", "pyarrow")


@dataclass(frozen=True)
class Attempt:
    """One call of `ingot run`, as the store records it."""

    store: Store
    key: str

    def begin(self, stage: str) -> None:
        self._record(f"{stage}.begun", {"at": time.time()})

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


def begin_attempt(store: Store, recipe: Recipe, stages: list[str]) -> Attempt:
    """Creates the run's next attempt; two calls at once get different numbers."""
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
    number = max(_attempts(store, recipe.name), default=0) + 1
    while not store.create(f"{_key(recipe.name, number)}/run.json", json.dumps(body).encode()):
        number += 1
    return Attempt(store, _key(recipe.name, number))


def list_runs(store: Store) -> list[str]:
    """The names of all runs in the store."""
    return sorted({key.split("/")[1] for key in store.list("runs/")})


def show_run(store: Store, name: str) -> dict[str, Any]:
    """The run's last attempt: `{"run", "store", "stages": [{"stage", "fingerprint", "digest", "status",
    "seconds", "metrics"}…]}`. `seconds` is what the call that committed the artifact took."""
    numbers = list(_attempts(store, name))
    if not numbers:
        there = list_runs(store)
        raise UsageError(f"store {store.uri}: no run {name!r}; there are: {', '.join(there) or 'none'}")
    key = _key(name, max(numbers))
    run = json.loads(store.read(f"{key}/run.json"))
    stages = [_show_stage(store, key, stage) for stage in run["stages"]]
    return {
        "run": name,
        "store": store.uri,
        "attempt": max(numbers),
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
        record = json.loads(store.read(f"{key}/{stage}.json"))
    except ObjectMissing:
        return {**shown, "status": "begun" if store.exists(f"{key}/{stage}.begun.json") else "waiting"}
    if "artifact" not in record:
        return {**shown, **record}
    shown |= {name: record[name] for name in ("fingerprint", "digest", "status", "seconds")}
    try:
        manifest = json.loads(store.read(f"{record['artifact']}/manifest.json"))
    except ObjectMissing:
        return {**shown, "status": "deleted"}
    return {**shown, "seconds": manifest["made"]["seconds"], "metrics": manifest["metrics"]}


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


def _key(name: str, number: int) -> str:
    return f"runs/{name}/{number:06d}"


def _attempts(store: Store, name: str) -> Iterator[int]:
    for key in store.list(f"runs/{name}/"):
        if key.endswith("/run.json"):
            yield int(key.split("/")[2])
