"""What a run has of one document, and which documents one of its training samples is made of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from ingot.errors import UsageError
from ingot.pipelines.artifact import Artifact, load
from ingot.pipelines.store import Store


def document(store: Store, run: Mapping[str, Any], name: str) -> list[dict[str, Any]]:
    """What became of each document that `name` (an id, a path or an address) stands for: see
    `dedup.why.explain`; and `place`, where the tokens of a kept one are (see `places.Place`), or None as long
    as there are none. Raises UsageError where the run has no such document, or no dedup yet."""
    from ingot.pipelines.dedup.why import explain
    from ingot.pipelines.places import Places

    corpus, dedup, tokens = (_artifact(store, run, stage) for stage in ("corpus", "dedup", "tokens"))
    if corpus is None or dedup is None:
        raise UsageError(f"run {run['run']}: its dedup is not committed yet; run it until then first")
    found = explain(corpus, dedup, name)
    places = Places(tokens) if tokens else None
    for each in found:
        place = places.of(each["id"]) if places else None
        each["place"] = asdict(place) if place else None
    return found


def sample(store: Store, run: Mapping[str, Any], number: int) -> list[dict[str, Any]]:
    """The documents of a sample of the run's pretraining: see `lineage.documents_of_sample`. Raises
    UsageError where there is none."""
    from ingot.pipelines.training.lineage import documents_of_sample

    key = f"artifacts/pretrain/{_fingerprint(run, 'pretrain')}"
    if not store.exists(f"{key}/job.json"):
        raise UsageError(f"run {run['run']}: its pretrain is not committed yet; run it until then first")
    return documents_of_sample(store, key, number)


def _artifact(store: Store, run: Mapping[str, Any], stage: str) -> Artifact | None:
    return load(store, f"artifacts/{stage}/{_fingerprint(run, stage)}")


def _fingerprint(run: Mapping[str, Any], stage: str) -> str | None:
    return next((each["fingerprint"] for each in run["stages"] if each["stage"] == stage), None)
