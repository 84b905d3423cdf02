"""Shipping: the shingles of documents, sent to where others are to be compared with them.

A document that many are compared with is sent once to each partition that asks for it, not once a pair, and
what is sent goes through the store like everything else: reading sets one by one where they lie would be a
request for each document."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from ingot.pipelines.artifact import File
from ingot.pipelines.compiled import compiled
from ingot.pipelines.dedup.candidates import distinct_asks
from ingot.pipelines.dedup.exchange import put_segments, read_partition, read_rows, read_slices
from ingot.pipelines.dedup.rows import ASK, DOCUMENT, Locations, Numbers, Rows, blocks, files_of, rows_of
from ingot.pipelines.store import Store

BLOCK_SHINGLES = 4_000_000  # sent as one run, beyond those of a single document: 32 MB
HEADER = 5  # numbers before a set's shingles: location, rank, id_high, id_low, how many there are

Hashes = npt.NDArray[np.uint64]


def ship_shingles(store: Store, body: Mapping[str, Any]) -> dict[str, Any]:
    """A partition of the documents → `sets`: runs of sets, each HEADER numbers and the shingles, cut by the
    partition that asked.

    body: `asks` (runs of ASK rows), `partition`, `cuts`, `first` (the partition's first documents file),
    `signed` (sign's records of its documents files)."""
    asks = distinct_asks(read_partition(store, body["asks"], body["partition"], ASK))
    places, which = np.unique(asks["better"], return_inverse=True)
    documents = read_documents(store, body, places)
    sizes = documents["shingles"].astype(np.int64) + HEADER
    runs = []
    partitions = sum(cut for _, cut in body["cuts"])
    for start, stop in blocks(sizes[which], BLOCK_SHINGLES):
        held, end = which[start], which[stop - 1] + 1
        sets = read_shingles(store, body, places[held:end], documents[held:end])
        order = np.argsort(asks["partition"][start:stop], kind="stable")
        own = which[start:stop][order] - held
        heads = np.empty((end - held, HEADER), np.uint64)
        heads[:, 0] = places[held:end]
        for column, name in enumerate(("rank", "id_high", "id_low", "shingles"), start=1):
            heads[:, column] = documents[name][held:end]
        lengths = sizes[held:end][own]
        packed = np.empty(int(lengths.sum()), np.uint64)
        _pack(heads, sets, np.cumsum(sizes[held:end] - HEADER), own, packed)
        asked = asks["partition"][start:stop][order].astype(np.int64)
        of_partition = np.bincount(asked, lengths, partitions).astype(np.int64)
        runs.append(put_segments(store, packed.tobytes(), of_partition * 8))
    return {"sets": runs}


@compiled
def _pack(heads: Hashes, sets: Hashes, ends: Numbers, which: Numbers, packed: Hashes) -> None:
    at = 0
    for number in which:
        end = ends[number]
        start = ends[number - 1] if number else 0
        for column in range(heads.shape[1]):
            packed[at] = heads[number, column]
            at += 1
        for index in range(start, end):
            packed[at] = sets[index]
            at += 1


def read_documents(store: Store, body: Mapping[str, Any], places: Locations) -> Rows:
    """The DOCUMENT rows at the ascending locations `places`, all in the files of `signed`, which begin with
    number `first`."""
    files, rows = files_of(places) - body["first"], rows_of(places)
    parts = [
        read_rows(store, body["signed"][number]["documents"], DOCUMENT)[rows[files == number]]
        for number in np.unique(files).tolist()
    ]
    return np.concatenate([np.empty(0, DOCUMENT), *parts])


def read_shingles(store: Store, body: Mapping[str, Any], places: Locations, documents: Rows) -> Hashes:
    """The shingles of the documents at the ascending locations `places`, set after set."""
    files = files_of(places) - body["first"]
    parts: Sequence[bytes] = [
        read_slices(
            store,
            File.from_json(body["signed"][number]["shingles"]),
            documents["first_shingle"][files == number].astype(np.int64) * 8,
            documents["shingles"][files == number].astype(np.int64) * 8,
        )
        for number in np.unique(files).tolist()
    ]
    return np.frombuffer(b"".join(parts), np.uint64)
