"""Documents → which of them go, each with the witness that it goes for: copies by address and by normalised
content, and near duplicates by MinHash-LSH over word n-grams, every pair verified by the exact Jaccard
similarity of its shingle sets.

`run` goes through the snapshots, `snapshot` is the path of one; `kernels` holds what reads text, `exchange`
and `rows` what passes between the steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise

from ingot.pipelines.artifact import Artifact, canonical_digest, commit, load
from ingot.pipelines.dedup.snapshot import TABLES, TOTALS, Base, add_snapshot
from ingot.pipelines.dedup.steps import VERSION
from ingot.pipelines.pipeline import Outcome
from ingot.pipelines.sections import Dedup
from ingot.pipelines.units import Workspace

__all__ = ["TOTALS", "VERSION", "run"]


def run(workspace: Workspace, section: Dedup, inputs: Mapping[str, Artifact]) -> Outcome:
    """Reads the corpus stage's `documents/NNNNN.parquet`; makes `removed/NNNNN.parquet` (id, witness_id,
    similarity, bands, kind) and `kept/NNNNN.parquet` (id, copies), rows in the documents file's order.

    Every witness is kept. A removal's kind is `url` where its address is its witness's or that of a copy of
    it, `exact` where its normalised content is its witness's, else `near`, with the Jaccard similarity and
    the bands that made the pair a candidate. `copies` is how many documents a kept one stands for, itself
    included.

    The snapshots are taken one after another. What is decided of the earlier ones is an artifact of its own
    below `artifacts/dedup-snapshots`, with an index, so that a corpus to which a snapshot is added begins
    there and reads none of their text."""
    corpus = inputs["corpus"]
    names = corpus.names("documents/")
    meta = corpus.json("snapshots.json") if "snapshots.json" in corpus.files else {}
    numbers: list[int] = meta.get("files", [0] * len(names))
    base: Base | None = None
    for done in ends_of_passes(section, numbers):
        own = names[:done]
        identity = {
            "version": VERSION,
            "section": section.what(),
            "snapshots": numbers[:done],
            "files": [corpus.files[name].sha256 for name in own],
        }
        fingerprint = canonical_digest(identity)[:32]
        key = f"artifacts/dedup-snapshots/{fingerprint}"
        place = replace(workspace, key=key)
        place.forget_if_lost()
        artifact = load(workspace.store, key)
        if artifact is None:
            outcome = add_snapshot(place, section, corpus, own, base, numbers[:done])
            workspace.refuse_if_fenced()
            artifact = commit(
                workspace.store, key, "dedup-snapshots", fingerprint, outcome.files, outcome.metrics, {}
            )
        base = Base(artifact, base)
    assert base is not None, "the corpus stage refuses a corpus without documents"
    missing = sorted(set(section.takedown) - set(base.artifact.metrics["taken_down"]))
    if missing:
        workspace.progress.say(f"  takedown names {len(missing)} that no document has, such as {missing[0]}")
    tables = {name: file for name, file in base.artifact.files.items() if name.startswith(TABLES)}
    return Outcome(tables, base.artifact.metrics)


def ends_of_passes(section: Dedup, snapshots: Sequence[int]) -> list[int]:
    """How many of the documents files, of which `snapshots` are the numbers, each pass has come to when it
    ends: one pass a snapshot, or a single one where a new document may join two old ones."""
    if section.decide == "components":
        return [len(snapshots)]
    changes = [at for at, (one, next_) in enumerate(pairwise(snapshots), start=1) if one != next_]
    return [*changes, len(snapshots)]
