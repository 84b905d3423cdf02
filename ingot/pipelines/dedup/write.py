"""The artifact's files: for each documents file, which of its documents go and which stay."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow

from ingot.pipelines.artifact import put_table
from ingot.pipelines.dedup.documents import id_strings
from ingot.pipelines.dedup.exchange import location_bounds, partition_of, read_partition, read_rows
from ingot.pipelines.dedup.rows import DOCUMENT, GAIN, REMOVAL, Rows, files_of, rows_of
from ingot.pipelines.store import Store


def write_file(store: Store, body: Mapping[str, Any]) -> dict[str, Any]:
    """A documents file's DOCUMENT rows and what was resolved → its tables `removed` and `kept`, and counts.

    An exact copy goes for the document that stays of its content. Where that one went as a near duplicate,
    the copy goes for the same witness with the same similarity, and is a near duplicate too.

    body: `documents` (the entry of the rows), `number`, `resolved` (resolve_pairs' record), `files`,
    `location_partitions`."""
    documents = read_rows(store, body["documents"], DOCUMENT)
    resolved = body["resolved"]
    removals = _own(store, resolved["removals"], body, REMOVAL)
    gains = _own(store, resolved["gains"], body, GAIN)
    copies = documents["copies"].astype(np.int64)
    witness = np.stack([documents["witness_high"], documents["witness_low"]], axis=1)
    similarity = np.ones(len(documents))
    near = np.zeros(len(documents), bool)

    own = rows_of(removals["location"])
    near[own] = True
    similarity[own] = removals["similarity"]
    witness[own] = np.stack([removals["witness_high"], removals["witness_low"]], axis=1)
    copies[rows_of(gains["location"])] += gains["copies"].astype(np.int64)

    exact = np.flatnonzero(documents["copies"] == 0)
    if len(exact):
        moved = read_rows(store, resolved["moved"], REMOVAL)
        went = exact[np.isin(documents["witness"][exact], moved["location"])]
        rows = moved[np.searchsorted(moved["location"], documents["witness"][went])]
        near[went] = True
        similarity[went] = rows["similarity"]
        witness[went] = np.stack([rows["witness_high"], rows["witness_low"]], axis=1)

    removed = near | (documents["copies"] == 0)
    names = id_strings(documents["id_high"], documents["id_low"])
    gone = pyarrow.table(
        {
            "id": names.filter(pyarrow.array(removed)),
            "witness_id": id_strings(*witness[removed].T),
            "similarity": similarity[removed],
            "kind": pyarrow.array(["exact", "near"]).take(pyarrow.array(near[removed].astype(np.int8))),
        }
    )
    kept = pyarrow.table({"id": names.filter(pyarrow.array(~removed)), "copies": copies[~removed]})
    return {
        "removed": put_table(store, gone).to_json(),
        "kept": put_table(store, kept).to_json(),
        "documents_in": len(documents),
        "documents_out": int((~removed).sum()),
        "bytes_in": int(documents["length"].sum()),
        "bytes_out": int(documents["length"][~removed].sum()),
        "removed_exact": int((removed & ~near).sum()),
        "removed_near": int(near.sum()),
    }


def _own(store: Store, run: Mapping[str, Any], body: Mapping[str, Any], dtype: np.dtype[np.void]) -> Rows:
    """The rows of the run that are about documents of this file."""
    part = partition_of(location_bounds(body["location_partitions"], body["files"]), body["number"] << 32)
    rows = read_partition(store, [run], part, dtype)
    return rows[files_of(rows["location"]) == body["number"]]
