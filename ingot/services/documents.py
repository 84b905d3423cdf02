"""What a run has of one document, and which documents one of its training samples is made of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import pyarrow
import pyarrow.compute

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


def records(store: Store, run: Mapping[str, Any], name: str) -> list[dict[str, Any]]:
    """The records at `name`, a file's path or PATH:RECORD, in order: source, path, record, and `id`, `state`
    (kept, removed, or read where dedup is not done) of a document or `reason` of one in quarantine."""
    corpus, dedup = (_artifact(store, run, stage) for stage in ("corpus", "dedup"))
    found = [{**row, "state": "quarantined"} for row in _at(corpus, "quarantine/", name)]
    names = ["id", "source", "path", "record"]
    documents = [{each: row[each] for each in names} for row in _at(corpus, "documents/", name, names)]
    kept: set[str] = set()
    if dedup is not None and documents:
        wanted = pyarrow.array([row["id"] for row in documents])
        for file in dedup.names("kept/"):
            ids = dedup.table(file, ["id"])["id"]
            kept |= set(ids.filter(pyarrow.compute.is_in(ids, wanted)).to_pylist())
    for row in documents:
        row["state"] = "read" if dedup is None else "kept" if row["id"] in kept else "removed"
    return sorted([*found, *documents], key=lambda row: (row["source"], row["path"], row["record"]))


def quarantine(store: Store, run: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The records that were not read, in order: source, path, record, reason. Raises UsageError where the
    run has no corpus yet."""
    corpus = _artifact(store, run, "corpus")
    if corpus is None:
        raise UsageError(f"run {run['run']}: its corpus is not committed yet; run it until then first")
    return [row for file in corpus.names("quarantine/") for row in corpus.table(file).to_pylist()]


def _at(
    corpus: Artifact | None, folder: str, name: str, columns: list[str] | None = None
) -> list[dict[str, Any]]:
    """The rows of the corpus's tables whose path is `name`, or whose path and record are."""
    path, _, record = name.rpartition(":")
    rows: list[dict[str, Any]] = []
    if corpus is None:
        return rows
    for file in corpus.names(folder):
        table = corpus.table(file, columns)
        here = pyarrow.compute.equal(table["path"], name)
        if path and record.isdecimal():
            one = pyarrow.compute.and_(
                pyarrow.compute.equal(table["path"], path),
                pyarrow.compute.equal(table["record"], int(record)),
            )
            here = pyarrow.compute.or_(here, one)
        rows += table.filter(here).to_pylist()
    return rows


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
