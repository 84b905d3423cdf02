"""Signing: a documents file → its shingles, its bands, and a row for each document."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ingot.pipelines.dedup.documents import ids, read_columns, utf8
from ingot.pipelines.dedup.exchange import (
    hash_bounds,
    location_bounds,
    partition_of,
    put_rows,
    put_run,
    read_catalogue,
    read_partition,
)
from ingot.pipelines.dedup.rows import BAND, COPY, DOCUMENT, files_of, locations, rows_of
from ingot.pipelines.store import Store


def sign_documents(store: Store, body: Mapping[str, Any]) -> dict[str, Any]:
    """A documents file → `documents` (DOCUMENT rows in the file's order), `shingles` (sorted sets of 64-bit
    hashes, one after another) and `bands` (a run of BAND rows, cut by the hash). Exact copies that go are
    left out of the last two.

    body: `documents` (the file's entry), `number`, `copies` (the catalogue of join_contents' runs), `files`,
    `location_partitions`, `partitions`, and `ngram`, `bands`, `rows`, `seed`."""
    from ingot.pipelines.dedup.kernels import capacity, permutations, sign

    table = read_columns(store, body["documents"], ["id", "text"])
    data, offsets = utf8(table["text"])
    documents = _documents(store, body, table, offsets)

    bands = body["bands"]
    multipliers, addends = permutations(bands * body["rows"], body["seed"])
    hashes = np.empty((len(documents), bands), np.uint64)
    shingles = np.empty(capacity(offsets), np.uint64)  # only what is written of it takes memory
    counts = np.empty(len(documents), np.int64)
    wanted = documents["copies"] > 0
    total = sign(data, offsets, wanted, body["ngram"], multipliers, addends, bands, hashes, shingles, counts)
    documents["shingles"] = counts
    documents["first_shingle"] = np.cumsum(counts) - counts

    signed = np.flatnonzero(counts)
    entries = np.empty((len(signed), bands), BAND)
    entries["hash"] = hashes[signed]
    entries["length"] = documents["length"][signed, None]
    entries["id_high"] = documents["id_high"][signed, None]
    entries["location"] = locations(body["number"], len(documents))[signed, None]
    entries = entries.reshape(-1)
    entries = entries[np.argsort(entries["hash"], kind="stable")]
    return {
        "documents": put_rows(store, documents),
        "shingles": put_rows(store, shingles[:total]),
        "bands": put_run(store, entries, "hash", hash_bounds(body["partitions"])),
    }


def _documents(store: Store, body: Mapping[str, Any], table: Any, offsets: Any) -> Any:
    """The file's DOCUMENT rows, all but their shingles."""
    documents = np.zeros(table.num_rows, DOCUMENT)
    documents["id_high"], documents["id_low"] = ids(table["id"]).T
    documents["length"] = np.diff(offsets)
    documents["copies"] = 1
    number = body["number"]
    part = partition_of(location_bounds(body["location_partitions"], body["files"]), number << 32)
    copies = read_partition(store, read_catalogue(store, body["copies"]), part, COPY)
    copies = copies[files_of(copies["location"]) == number]
    own = rows_of(copies["location"])
    for name in ("copies", "witness", "witness_high", "witness_low"):
        documents[name][own] = copies[name]
    return documents
