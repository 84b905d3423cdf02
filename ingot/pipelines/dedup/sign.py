"""Signing: a documents file → its shingles, its bands, and a row for each document."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ingot.pipelines.dedup.characters import character_classes, compared
from ingot.pipelines.dedup.documents import read_columns
from ingot.pipelines.dedup.exchange import hash_bounds, put_rows, put_run, read_rows
from ingot.pipelines.dedup.keys import salts, stay
from ingot.pipelines.dedup.rows import BAND, BAND_BITS, DOCUMENT, locations
from ingot.pipelines.store import Store


def sign_documents(store: Store, body: Mapping[str, Any]) -> dict[str, Any]:
    """A documents file → `documents` (DOCUMENT rows in the file's order), `shingles` (sorted sets of 64-bit
    hashes, one after another, or in their place signatures, two minima in each 64 bits) and `bands` (a run of
    BAND rows, cut by the hash). Copies are left out of the last two.

    body: `documents` (the file's entry), `rows` (find_keys' DOCUMENT rows), `gone` (find_gone's of the file),
    `number`, `partitions`, `scope`, `ngram`, `bands`, `band_rows`, `seed`, `decide`, `normalize`,
    `casefold`."""
    from ingot.pipelines.dedup.kernels import capacity, permutations, sign, signatures

    table = read_columns(store, body["documents"], ["text", "source"])
    data, offsets = compared(table["text"], body)
    documents = read_rows(store, body["rows"], DOCUMENT).copy()
    wanted = stay(store, len(documents), body["gone"])

    bands = body["bands"]
    multipliers, addends = permutations(bands * body["band_rows"], body["seed"])
    hashes = np.empty((len(documents), bands), np.uint64)
    shingles = np.empty(capacity(offsets), np.uint64)  # only what is written of it takes memory
    counts = np.empty(len(documents), np.int64)
    classes, ngram = character_classes(), body["ngram"]
    total = sign(data, offsets, wanted, classes, ngram, multipliers, addends, bands, hashes, shingles, counts)
    shingles = shingles[:total]
    signed = np.flatnonzero(counts)
    if body["decide"] == "signature":
        minima = np.zeros((len(signed), -(-len(multipliers) // 2) * 2), np.uint32)
        signatures(shingles, counts[signed], multipliers, addends, minima[:, : len(multipliers)])
        shingles = minima.view(np.uint64).reshape(-1)
        counts[signed] = minima.shape[1] // 2
    documents["shingles"] = counts
    documents["first_shingle"] = np.cumsum(counts) - counts

    hashes ^= salts(table["source"], body["scope"])[:, None]
    hashes >>= np.uint64(BAND_BITS)
    hashes = hashes << np.uint64(BAND_BITS) | np.arange(bands, dtype=np.uint64)
    entries = np.empty((len(signed), bands), BAND)
    entries["hash"] = hashes[signed]
    entries["rank"] = documents["rank"][signed, None]
    entries["id_high"] = documents["id_high"][signed, None]
    entries["location"] = locations(body["number"], len(documents))[signed, None]
    entries = entries.reshape(-1)
    entries = entries[np.argsort(entries["hash"], kind="stable")]
    return {
        "documents": put_rows(store, documents),
        "shingles": put_rows(store, shingles),
        "bands": put_run(store, entries, "hash", hash_bounds(body["partitions"])),
    }
