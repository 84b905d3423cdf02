"""The artifact's files: for each documents file, which of its documents go and which stay."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow
import pyarrow.compute

from ingot.pipelines.artifact import File, put_table, read_table
from ingot.pipelines.dedup.documents import id_strings
from ingot.pipelines.dedup.exchange import Bounds, partitions_of, put_rows, put_run, read_partition, read_rows
from ingot.pipelines.dedup.rows import (
    DOCUMENT,
    GAIN,
    KINDS,
    NOBODY,
    REMOVAL,
    Numbers,
    Rows,
    files_of,
    rows_of,
)
from ingot.pipelines.sections import MOST_BANDS
from ingot.pipelines.store import Store

EXAMPLES = 20
SHOWN_BYTES = 1200  # about the length of the text that is shown beside its witness


def put_removals(store: Store, rows: Rows, bounds: Bounds) -> dict[str, Any]:
    """Stores REMOVAL rows as `removals`, a run cut by location, and what their witnesses gain as `gains`, a
    run of GAIN rows cut likewise; `gaining` are the partitions of these, and `count` is of what goes."""
    witness, copies = np.unique(rows["witness"][rows["witness"] != NOBODY], return_counts=True)
    gains = np.empty(len(witness), GAIN)
    gains["location"], gains["copies"] = witness, copies
    return {
        "removals": put_run(store, rows[np.argsort(rows["location"], kind="stable")], "location", bounds),
        "gains": put_run(store, gains, "location", bounds),
        "count": len(rows),
        "gaining": np.unique(partitions_of(bounds, witness)).tolist(),
    }


def write_files(store: Store, body: Mapping[str, Any]) -> dict[str, Any]:
    """A partition of the documents → of each of its files the tables `removed` and `kept` and, for later
    snapshots, `index` (DOCUMENT rows in which what went has no shingles to be near to); counts in all, and
    the partition's `examples` (removals by their ids' order, as [id, location, witness, similarity]) and
    `shown` (one with a text that is good to read, as [distance, id, location, witness, similarity]).

    body: `documents` (the entries of sign's DOCUMENT rows, by file), `first` (the number of the first file),
    `removals` and `gains` (put_removals' runs), `partition`, `new` (the first documents file of the
    snapshot)."""
    removals = read_partition(store, body["removals"], body["partition"], REMOVAL)
    gains = read_partition(store, body["gains"], body["partition"], GAIN)
    files, total = [], _Counts()
    for number, entry in enumerate(body["documents"], start=body["first"]):
        documents = read_rows(store, entry, DOCUMENT)
        own = removals[files_of(removals["location"]) == number]
        own = own[np.argsort(own["location"])]
        copies = np.ones(len(documents), np.int64)
        gained = gains[files_of(gains["location"]) == number]
        np.add.at(copies, rows_of(gained["location"]), gained["copies"].astype(np.int64))
        gone = rows_of(own["location"])
        stays = np.ones(len(documents), bool)
        stays[gone] = False
        names = id_strings(documents["id_high"], documents["id_low"])
        removed = pyarrow.table(
            {
                "id": names.take(pyarrow.array(gone)),
                "witness_id": pyarrow.compute.if_else(
                    pyarrow.array(own["witness"] != NOBODY),
                    id_strings(own["witness_high"], own["witness_low"]),
                    None,
                ),
                "similarity": pyarrow.array(own["similarity"], mask=np.isnan(own["similarity"])),
                "bands": _bands(own["bands"]),
                "kind": pyarrow.array(KINDS).take(pyarrow.array(own["kind"].astype(np.int8))),
            }
        )
        kept = pyarrow.table({"id": names.filter(pyarrow.array(stays)), "copies": copies[stays]})
        left = documents.copy()
        left["shingles"][gone] = 0
        files.append(
            {
                "removed": put_table(store, removed).to_json(),
                "kept": put_table(store, kept).to_json(),
                "index": put_rows(store, left),
            }
        )
        total.add(documents, own, stays, copies, body["new"])
    return {"files": files, **total.record()}


def add_gains(store: Store, body: Mapping[str, Any]) -> dict[str, Any]:
    """A partition of an earlier snapshot's documents → `kept`, the tables of its files that stand for more
    now, by the file's number, and how `clusters` change.

    body: `documents` (the index's DOCUMENT rows, by file), `kept` (the tables' entries), `first`, `gains`,
    `partition`."""
    gains = read_partition(store, body["gains"], body["partition"], GAIN)
    made: dict[str, Any] = {}
    clusters: dict[str, int] = {}
    for number, (entry, table) in enumerate(zip(body["documents"], body["kept"], strict=True), body["first"]):
        gained = gains[files_of(gains["location"]) == number]
        if len(gained) == 0:
            continue
        documents = read_rows(store, entry, DOCUMENT)[rows_of(gained["location"])]
        kept = read_table(store, File.from_json(table), "a table of kept documents")
        row_of = {name: row for row, name in enumerate(kept["id"].to_pylist())}
        names = id_strings(documents["id_high"], documents["id_low"]).to_pylist()
        before = kept["copies"].to_numpy()
        copies = before.copy()
        np.add.at(copies, [row_of[name] for name in names], gained["copies"].astype(np.int64))
        made[str(number)] = put_table(store, pyarrow.table({"id": kept["id"], "copies": copies})).to_json()
        for size, count in [*_histogram(copies).items(), *((s, -c) for s, c in _histogram(before).items())]:
            clusters[size] = clusters.get(size, 0) + count
    return {"kept": made, "clusters": clusters}


def _histogram(copies: Numbers) -> dict[str, int]:
    """How many are 1, 2, up to 4, up to 8, …"""
    sizes, counts = np.unique(1 << np.ceil(np.log2(copies)).astype(np.int64), return_counts=True)
    return {str(size): count for size, count in zip(sizes.tolist(), counts.tolist(), strict=True)}


class _Counts:
    """What a partition's files hold together."""

    def __init__(self) -> None:
        self.sums = dict.fromkeys(("documents_in", "documents_out", "bytes_in", "bytes_out"), 0)
        self.sums |= {f"{what}_{kind}": 0 for kind in KINDS for what in ("removed", "removed_bytes")}
        self.clusters: dict[str, int] = {}
        self.examples: list[list[Any]] = []
        self.shown: list[list[Any]] = []

    def add(
        self, documents: Rows, own: Rows, stays: npt.NDArray[np.bool_], copies: Numbers, new: int
    ) -> None:
        length = documents["length"].astype(np.int64)
        gone = rows_of(own["location"])
        found = {"documents_in": len(documents), "documents_out": stays.sum()}
        found |= {"bytes_in": length.sum(), "bytes_out": length[stays].sum()}
        for number, kind in enumerate(KINDS):
            of_kind = gone[own["kind"] == number]
            found |= {f"removed_{kind}": len(of_kind), f"removed_bytes_{kind}": length[of_kind].sum()}
        self.sums = {name: count + int(found[name]) for name, count in self.sums.items()}
        for size, count in _histogram(copies[stays]).items():
            self.clusters[size] = self.clusters.get(size, 0) + count
        # to show a witness of an earlier snapshot would be to read its text
        near = own[(own["kind"] == 0) & (files_of(own["witness"]) >= new)]
        rows = rows_of(near["location"])
        order = np.argsort(documents["id_high"][rows], kind="stable")[:EXAMPLES]
        self.examples += [_example(documents, near[index]) for index in order]
        self.examples = sorted(self.examples)[:EXAMPLES]
        # the text and its witness are about as long
        distance = np.abs(length[rows] - SHOWN_BYTES)
        unequal = np.flatnonzero(near["similarity"] < 1)
        order = np.lexsort((documents["id_high"][rows][unequal], distance[unequal]))[:1]
        self.shown += [[int(distance[index]), *_example(documents, near[index])] for index in unequal[order]]
        self.shown = sorted(self.shown)[:1]

    def record(self) -> dict[str, Any]:
        return {**self.sums, "clusters": self.clusters, "examples": self.examples, "shown": self.shown}


def _example(documents: Rows, removal: Any) -> list[Any]:
    row = int(removal["location"]) & 0xFFFFFFFF
    places = (int(removal["location"]), int(removal["witness"]))
    similarity = None if np.isnan(removal["similarity"]) else float(removal["similarity"])
    return [int(documents["id_high"][row]), *places, similarity]


def _bands(masks: npt.NDArray[np.uint64]) -> pyarrow.Array:
    """Lists of the numbers of the bits that are set."""
    bits = masks[:, None] >> np.arange(MOST_BANDS, dtype=np.uint64) & np.uint64(1)
    row, band = np.nonzero(bits)
    offsets = np.append(0, np.cumsum(np.bincount(row, minlength=len(masks)))).astype(np.int32)
    return pyarrow.ListArray.from_arrays(offsets, pyarrow.array(band.astype(np.uint8)))
