"""The registry of models: `models/<name>/<version>.json`, numbered entries created once.

A model version points at a checkpoint artifact and never changes; `name` alone means its newest version."""

from __future__ import annotations

import json
import re
import time
from dataclasses import asdict, dataclass, fields
from typing import Any, get_type_hints

from ingot.errors import IngotError, UsageError
from ingot.pipelines.artifact import Artifact, load
from ingot.pipelines.records import damaged, read_object
from ingot.pipelines.store import Store


@dataclass(frozen=True)
class ModelVersion:
    """One version of a model."""

    name: str
    version: int
    checkpoint: str  # the artifact's key
    weights: str  # the artifact's digest
    evaluation: str | None  # the key of the evaluation's artifact
    run: str
    at: float  # seconds since the epoch

    @property
    def id(self) -> str:
        return f"{self.name}@{self.version}"

    def to_json(self) -> dict[str, Any]:
        return {"id": self.id, **asdict(self)}

    def artifact(self, store: Store) -> Artifact:
        """The checkpoint. Raises IngotError where it is gone or is not the one that was published."""
        artifact = load(store, self.checkpoint)
        if artifact is None:
            raise IngotError(
                f"{self.id}: its checkpoint {self.checkpoint} is gone from {store.uri}; publish it again"
            )
        if artifact.digest != self.weights:
            raise IngotError(
                f"{self.id}: {self.checkpoint} holds {artifact.digest[:12]}, but {self.weights[:12]} was "
                "published; run the recipe again to publish what is there"
            )
        return artifact


def publish(
    store: Store, name: str, checkpoint: Artifact, evaluation: Artifact | None, run: str
) -> ModelVersion:
    """The version of `name` that points at this checkpoint and evaluation: made unless there is one."""
    evaluated = evaluation.key if evaluation else None
    pointed = (checkpoint.key, checkpoint.digest, evaluated)
    while True:
        taken = versions_of(store, name)
        for version in taken:
            if (version.checkpoint, version.weights, version.evaluation) == pointed:
                return version
        number = taken[-1].version + 1 if taken else 1
        version = ModelVersion(name, number, checkpoint.key, checkpoint.digest, evaluated, run, time.time())
        if store.create(_key(name, number), json.dumps(asdict(version)).encode()):
            return version


def versions_of(store: Store, name: str) -> list[ModelVersion]:
    """The versions of one model, oldest first."""
    return [_version(store, key) for key in sorted(store.list(f"models/{name}/"))]


def list_versions(store: Store) -> list[ModelVersion]:
    names = sorted({key.split("/")[1] for key in store.list("models/")})
    return [version for name in names for version in versions_of(store, name)]


def resolve(store: Store, model: str) -> ModelVersion:
    """The version that `name` or `name@version` means. Raises UsageError, listing what there is."""
    found = re.fullmatch(r"([a-z0-9][a-z0-9._-]*)(?:@([0-9]+))?", model)
    if not found:
        raise UsageError(f"model {model!r}: write it as NAME or NAME@VERSION")
    name, number = found[1], found[2]
    versions = versions_of(store, name)
    for version in reversed(versions):
        if number is None or version.version == int(number):
            return version
    there = ", ".join(version.id for version in versions or list_versions(store))
    raise UsageError(
        f"store {store.uri}: no model {model}; there are: {there or 'none; publish one with ingot run'}"
    )


def _version(store: Store, key: str) -> ModelVersion:
    """Raises Damaged where the entry is not one that Ingot wrote at this key."""
    body = read_object(store, key, **get_type_hints(ModelVersion))
    version = ModelVersion(**{field.name: body[field.name] for field in fields(ModelVersion)})
    if key != _key(version.name, version.version):
        raise damaged(f"{store.uri}/{key}", f"it is of {version.id[:200]!a}")
    return version


def _key(name: str, number: int) -> str:
    return f"models/{name}/{number:06d}.json"
