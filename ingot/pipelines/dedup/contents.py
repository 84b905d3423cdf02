"""Exact copies: documents whose normalised content is equal, found by its 128-bit hash.

They are found before anything is signed, as they are most of what goes from web text and cost least to
find. Of each group the document of the best rank stays for now; whether it goes as a near duplicate is
settled later."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ingot.pipelines.dedup.documents import ids, read_columns, utf8
from ingot.pipelines.dedup.exchange import (
    hash_bounds,
    location_bounds,
    put_run,
    read_catalogue,
    read_partition,
)
from ingot.pipelines.dedup.rows import CONTENT, COPY, by_rank, locations
from ingot.pipelines.store import Store


def find_contents(store: Store, body: Mapping[str, Any]) -> dict[str, Any]:
    """A documents file → a run of CONTENT rows, cut by the key.

    body: `documents` (the file's entry), `number` (which of the documents files), `partitions`."""
    from ingot.pipelines.dedup.kernels import content_keys

    table = read_columns(store, body["documents"], ["id", "text"])
    data, offsets = utf8(table["text"])
    keys = np.empty((len(offsets) - 1, 2), np.uint64)
    content_keys(data, offsets, keys)
    names = ids(table["id"])
    rows = np.empty(len(keys), CONTENT)
    rows["key_high"], rows["key_low"] = keys.T
    rows["length"] = np.diff(offsets)
    rows["id_high"], rows["id_low"] = names.T
    rows["location"] = locations(body["number"], len(rows))
    rows = rows[np.argsort(rows["key_high"], kind="stable")]
    return {"run": put_run(store, rows, "key_high", hash_bounds(body["partitions"]))}


def join_contents(store: Store, body: Mapping[str, Any]) -> dict[str, Any]:
    """A partition of the keys → a run of COPY rows for every content with more than one document, cut by
    location.

    body: `runs` (the catalogue of find_contents' runs), `partition`, `files` and `location_partitions`."""
    rows = read_partition(store, read_catalogue(store, body["runs"]), body["partition"], CONTENT)
    rows = rows[by_rank(rows, "key_high", "key_low")]
    differs = (rows["key_high"][1:] != rows["key_high"][:-1]) | (rows["key_low"][1:] != rows["key_low"][:-1])
    first = np.flatnonzero(np.append(np.ones(min(1, len(rows)), bool), differs))
    sizes = np.diff(np.append(first, len(rows)))
    best = np.repeat(first, sizes)
    copies = np.empty(len(rows), COPY)
    copies["location"] = rows["location"]
    copies["copies"] = 0
    copies["copies"][first] = sizes
    copies["witness"] = rows["location"][best]
    copies["witness_high"] = rows["id_high"][best]
    copies["witness_low"] = rows["id_low"][best]
    copies = copies[np.repeat(sizes, sizes) > 1]
    copies.sort(order="location")
    bounds = location_bounds(body["location_partitions"], body["files"])
    return {"run": put_run(store, copies, "location", bounds)}
