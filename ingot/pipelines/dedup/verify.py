"""Verification: the exact Jaccard similarity of every candidate pair's shingle sets.

A shared bucket is a reason to look, never a reason to remove."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from ingot.pipelines.artifact import File
from ingot.pipelines.dedup.candidates import distinct_pairs
from ingot.pipelines.dedup.compiled import compiled
from ingot.pipelines.dedup.exchange import put_rows, read_catalogue, read_partition, read_slices
from ingot.pipelines.dedup.rows import DOCUMENT, EDGE, NODE, PAIR, Rows, blocks, files_of, rows_of
from ingot.pipelines.store import Store

BLOCK_SHINGLES = 4_000_000  # held at once, beyond those of a single pair: 32 MB

Locations = npt.NDArray[np.uint64]
Hashes = npt.NDArray[np.uint64]
Counts = npt.NDArray[np.int64]


def verify_pairs(store: Store, body: Mapping[str, Any]) -> dict[str, Any]:
    """A partition of the pairs → `edges` (EDGE rows of those that reach the threshold, sorted) and `nodes`
    (a NODE row for each document of these).

    body: `pairs` (the catalogue of find_candidates' runs), `signed` (the catalogue of sign's records),
    `partition`, `threshold`."""
    pairs = read_partition(store, read_catalogue(store, body["pairs"]), body["partition"], PAIR)
    pairs = distinct_pairs(pairs["worse"], pairs["better"])
    signed = read_catalogue(store, body["signed"])
    places = np.unique(np.concatenate([pairs["worse"], pairs["better"]]))
    documents = read_documents(store, [entry["documents"] for entry in signed], places)
    shingles = [File.from_json(entry["shingles"]) for entry in signed]

    worse, better = np.searchsorted(places, pairs["worse"]), np.searchsorted(places, pairs["better"])
    sizes = documents["shingles"].astype(np.int64)
    # No two sets are more alike than their sizes are: known without reading them.
    bound = np.minimum(sizes[worse], sizes[better]) / np.maximum(sizes[worse], sizes[better])
    worse, better = worse[bound >= body["threshold"]], better[bound >= body["threshold"]]
    similarity = np.empty(len(worse), np.float64)
    for start, stop in blocks(sizes[worse] + sizes[better], BLOCK_SHINGLES):
        both = np.concatenate([worse[start:stop], better[start:stop]])
        held, number = np.unique(both, return_inverse=True)
        sets = _read_shingles(store, shingles, places[held], documents[held])
        firsts = np.append(0, np.cumsum(sizes[held]))
        _jaccard(sets, firsts, number[: stop - start], number[stop - start :], similarity[start:stop])

    kept = similarity >= body["threshold"]
    edges = np.empty(int(kept.sum()), EDGE)
    edges["worse"], edges["better"] = places[worse[kept]], places[better[kept]]
    edges["similarity"] = similarity[kept]
    ends = np.unique(np.concatenate([worse[kept], better[kept]]))
    nodes = np.empty(len(ends), NODE)
    nodes["location"] = places[ends]
    for name in ("length", "id_high", "id_low", "copies"):
        nodes[name] = documents[name][ends]
    return {
        "edges": put_rows(store, edges),
        "nodes": put_rows(store, nodes),
        "pairs": len(pairs),
        "verified": len(edges),
    }


def read_documents(store: Store, entries: Sequence[Mapping[str, Any]], places: Locations) -> Rows:
    """The DOCUMENT rows at the ascending locations `places`, of the files `entries`."""
    parts = []
    files, rows = files_of(places), rows_of(places)
    for number in np.unique(files).tolist():
        starts = rows[files == number] * DOCUMENT.itemsize
        lengths = np.full(len(starts), DOCUMENT.itemsize)
        parts.append(read_slices(store, File.from_json(entries[number]), starts, lengths))
    return np.frombuffer(b"".join(parts), DOCUMENT)


def _read_shingles(store: Store, shingles: Sequence[File], places: Locations, documents: Rows) -> Hashes:
    """The shingles of the documents at the ascending locations `places`, set after set."""
    parts = []
    files = files_of(places)
    for number in np.unique(files).tolist():
        own = documents[files == number]
        starts, lengths = own["first_shingle"].astype(np.int64) * 8, own["shingles"].astype(np.int64) * 8
        parts.append(read_slices(store, shingles[number], starts, lengths))
    return np.frombuffer(b"".join(parts), np.uint64)


@compiled
def _jaccard(
    sets: Hashes, firsts: Counts, left: Counts, right: Counts, similarity: npt.NDArray[np.float64]
) -> None:
    """similarity[k] = |A ∩ B| / |A ∪ B| of the sorted sets number left[k] and right[k]."""
    for pair in range(len(left)):
        i, i_end = firsts[left[pair]], firsts[left[pair] + 1]
        j, j_end = firsts[right[pair]], firsts[right[pair] + 1]
        union = (i_end - i) + (j_end - j)
        shared = 0
        while i < i_end and j < j_end:
            a, b = sets[i], sets[j]
            shared += a == b
            i += a <= b
            j += b <= a
        similarity[pair] = shared / (union - shared)
