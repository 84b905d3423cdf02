"""Documents → which of them go, each with the witness that it goes for: copies by address and by normalised
content, and near duplicates by MinHash-LSH over word n-grams, every pair verified by the exact Jaccard
similarity of its shingle sets.

`run` is the path; `kernels` holds what reads text, `exchange` and `rows` what passes between the steps."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ingot.pipelines.artifact import Artifact, File
from ingot.pipelines.dedup.banding import choose_banding
from ingot.pipelines.dedup.candidates import find_candidates
from ingot.pipelines.dedup.examples import find_examples
from ingot.pipelines.dedup.follow import follow_leaders
from ingot.pipelines.dedup.keys import find_keys, join_keys, leave_followers_out
from ingot.pipelines.dedup.rows import KINDS
from ingot.pipelines.dedup.settle import settle_edges
from ingot.pipelines.dedup.ship import ship_shingles
from ingot.pipelines.dedup.sign import sign_documents
from ingot.pipelines.dedup.steps import Exchange, Record, Steps, choose_partitions
from ingot.pipelines.dedup.verify import verify_pairs
from ingot.pipelines.dedup.write import EXAMPLES, write_files
from ingot.pipelines.pipeline import Outcome
from ingot.pipelines.sections import Dedup
from ingot.pipelines.units import Workspace

__all__ = ["VERSION", "run"]

VERSION = 2

TOTALS = (
    *("documents_in", "documents_out", "bytes_in", "bytes_out"),
    *(f"{what}_{kind}" for kind in KINDS for what in ("removed", "removed_bytes")),
)


def run(workspace: Workspace, section: Dedup, inputs: Mapping[str, Artifact]) -> Outcome:
    """Reads the corpus stage's `documents/NNNNN.parquet`; makes `removed/NNNNN.parquet` (id, witness_id,
    similarity, bands, kind) and `kept/NNNNN.parquet` (id, copies), rows in the documents file's order.

    Every witness is kept. A removal's kind is `url` where its address is its witness's or that of a copy of
    it, `exact` where its normalised content is its witness's, else `near`, with the Jaccard similarity and
    the bands that made the pair a candidate. `copies` is how many documents a kept one stands for, itself
    included."""
    corpus = inputs["corpus"]
    names = corpus.names("documents/")
    files = [corpus.files[name] for name in names]
    banding = choose_banding(section.threshold, section.permutations)
    partitions, file_partitions = choose_partitions(files, banding.bands, section.partitions)
    stems = [name.removeprefix("documents/").removesuffix(".parquet") for name in names]
    steps = Steps(workspace, stems, partitions, file_partitions)
    texts = [{"documents": file.to_json()} for file in files]
    snapshots = corpus.json("snapshots.json") if "snapshots.json" in corpus.files else {}

    keying: Record = {"scope": section.scope, "url": section.url, "priority": section.priority}
    keying |= {"quality": section.quality, "snapshots": snapshots, "partitions": partitions}
    keyed = steps.for_files("keys", find_keys, texts.__getitem__, keying)
    copies = _find_copies(steps, section, keyed)

    gone = steps.exchange(
        "gone", [run for each in copies.values() for run in _values(each, "gone")], file_partitions
    )
    settings = {
        "ngram": section.ngram,
        "seed": section.seed,
        "scope": section.scope,
        "partitions": partitions,
    }
    settings |= {"bands": banding.bands, "band_rows": banding.rows}
    signed = steps.for_files(
        "sign",
        sign_documents,
        lambda number: {
            **texts[number],
            "rows": keyed[number]["documents"],
            **_own(steps, gone, number),
        },
        settings,
    )
    verified = _find_near(steps, section, signed)
    removed = settle_edges(steps, verified)
    for kind in ("exact", "url"):
        if kind in copies:
            removed += _follow(steps, kind, copies[kind], removed)
    written = _write(steps, signed, removed)

    counts = {name: sum(record[name] for record in written) for name in TOTALS}
    examples = _examples(steps, texts, written)
    metrics = {
        **counts,
        "bands": banding.bands,
        "rows": banding.rows,
        "partitions": partitions,
        "candidate_pairs": sum(_values(verified, "pairs")),
        "verified_pairs": sum(_values(verified, "verified")),
        "clusters": _clusters(written),
        "worker_processes": steps.processes,
        "examples": examples["examples"],
        "pair": examples["pair"],
    }
    tables = [tables for record in written for tables in record["files"]]
    made = {
        f"{table}/{stem}.parquet": File.from_json(own[table])
        for stem, own in zip(stems, tables, strict=True)
        for table in ("removed", "kept")
    }
    return Outcome(made, metrics)


def _find_copies(steps: Steps, section: Dedup, keyed: Sequence[Record]) -> dict[str, list[Record]]:
    """Kind of copy → join_keys' records."""
    found: dict[str, list[Record]] = {}
    contents = keyed
    if section.url:
        runs = steps.exchange("addresses", _values(keyed, "addresses"), steps.partitions)
        found["url"] = _join(steps, "url", runs)
        gone = steps.exchange("url-gone", _values(found["url"], "gone"), steps.file_partitions)
        contents = steps.for_files(
            "contents",
            leave_followers_out,
            lambda number: {"contents": keyed[number]["contents"], **_own(steps, gone, number)},
            {"partitions": steps.partitions},
        )
    runs = steps.exchange("contents", _values(contents, "contents"), steps.partitions)
    return {**found, "exact": _join(steps, "exact", runs)}


def _join(steps: Steps, kind: str, runs: Exchange) -> list[Record]:
    return steps.for_hashes(kind, join_keys, lambda part: {"runs": runs[part]}, steps.places)


def _own(steps: Steps, gone: Exchange, number: int) -> Record:
    """What `keys.stay` takes of a file."""
    part = steps.partition_of(number)
    return {"gone": gone[part], "file_partition": part}


def _find_near(steps: Steps, section: Dedup, signed: Sequence[Record]) -> list[Record]:
    """verify_pairs' records."""
    bands = steps.exchange("bands", _values(signed, "bands"), steps.partitions)
    found = steps.for_hashes("candidates", find_candidates, lambda part: {"runs": bands[part]}, steps.places)
    asks = steps.exchange("asks", _flat(found, "asks"), steps.file_partitions)
    pairs = steps.exchange("pairs", _flat(found, "pairs"), steps.file_partitions)

    def own(part: int) -> Record:
        files = steps.files_of(part)
        needed = ("documents", "shingles")
        return {"first": files.start, "signed": [{name: signed[n][name] for name in needed} for n in files]}

    shipped = steps.for_places(
        "ship", ship_shingles, lambda part: {"asks": asks[part], **own(part)}, steps.places
    )
    sets = steps.exchange("sets", _flat(shipped, "sets"), steps.file_partitions)
    return steps.for_places(
        "verify",
        verify_pairs,
        lambda part: {"pairs": pairs[part], "sets": sets[part], **own(part)},
        {"threshold": section.threshold, **steps.places},
    )


def _follow(steps: Steps, kind: str, copies: Sequence[Record], removed: Sequence[Record]) -> list[Record]:
    """put_removals' records of the copies of this kind."""
    followers = steps.exchange(f"{kind}-followers", _values(copies, "followers"), steps.file_partitions)
    gone = steps.exchange(f"{kind}-leaders", _values(removed, "removals"), steps.file_partitions)
    return steps.for_places(
        f"{kind}-follow",
        follow_leaders,
        lambda part: {"followers": followers[part], "removals": gone[part]},
        {"kind": kind, **steps.places},
    )


def _write(steps: Steps, signed: Sequence[Record], removed: Sequence[Record]) -> list[Record]:
    removals = steps.exchange("removals", _values(removed, "removals"), steps.file_partitions)
    gains = steps.exchange("gains", _values(removed, "gains"), steps.file_partitions)

    def own(part: int) -> Record:
        files = steps.files_of(part)
        documents = [signed[number]["documents"] for number in files]
        return {
            "first": files.start,
            "documents": documents,
            "removals": removals[part],
            "gains": gains[part],
        }

    return steps.for_places("write", write_files, own, {})


def _examples(steps: Steps, texts: Sequence[Record], written: Sequence[Record]) -> Record:
    chosen = {
        "examples": [pair[1:] for pair in sorted(_flat(written, "examples"))[:EXAMPLES]],
        "shown": [pair[2:] for pair in sorted(_flat(written, "shown"))[:1]],
    }
    held = sorted({place >> 32 for pairs in chosen.values() for pair in pairs for place in pair[:2]})
    where = {str(number): texts[number]["documents"] for number in held}
    return steps.once("examples", find_examples, {"documents": where, **chosen})


def _clusters(written: Sequence[Record]) -> dict[str, int]:
    """How many of the kept documents stand for 1 document, 2, up to 4, up to 8, …"""
    sizes = sorted({int(size) for record in written for size in record["clusters"]})
    return {str(size): sum(record["clusters"].get(str(size), 0) for record in written) for size in sizes}


def _values(records: Iterable[Record], key: str) -> list[Any]:
    return [record[key] for record in records]


def _flat(records: Iterable[Record], key: str) -> list[Any]:
    return [value for record in records for value in record[key]]
