"""The artifact's files: for each documents file, which of its documents go and which stay."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow

from ingot.pipelines.artifact import put_table
from ingot.pipelines.dedup.documents import id_strings
from ingot.pipelines.dedup.exchange import Bounds, put_run, read_partition, read_rows
from ingot.pipelines.dedup.rows import DOCUMENT, GAIN, KINDS, MOST_BANDS, REMOVAL, Rows, files_of, rows_of
from ingot.pipelines.store import Store

EXAMPLES = 20
SHOWN_BYTES = 1200  # about the length of the text that is shown beside its witness


def put_removals(store: Store, rows: Rows, bounds: Bounds) -> dict[str, Any]:
    """Stores REMOVAL rows as `removals`, a run cut by location, and what their witnesses gain as `gains`, a
    run of GAIN rows cut likewise."""
    witness, copies = np.unique(rows["witness"], return_counts=True)
    gains = np.empty(len(witness), GAIN)
    gains["location"], gains["copies"] = witness, copies
    return {
        "removals": put_run(store, rows[np.argsort(rows["location"], kind="stable")], "location", bounds),
        "gains": put_run(store, gains, "location", bounds),
    }


def write_files(store: Store, body: Mapping[str, Any]) -> dict[str, Any]:
    """A partition of the documents → the tables `removed` and `kept` of each of its files, counts in all, and
    the partition's `examples` (removals by their ids' order, as [id, location, witness, similarity]) and
    `shown` (one with a text that is good to read, as [distance, id, location, witness, similarity]).

    body: `documents` (the entries of sign's DOCUMENT rows, by file), `first` (the number of the first file),
    `removals` and `gains` (put_removals' runs), `partition`."""
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
                "witness_id": id_strings(own["witness_high"], own["witness_low"]),
                "similarity": pyarrow.array(own["similarity"], mask=np.isnan(own["similarity"])),
                "bands": _bands(own["bands"]),
                "kind": pyarrow.array(KINDS).take(pyarrow.array(own["kind"].astype(np.int8))),
            }
        )
        kept = pyarrow.table({"id": names.filter(pyarrow.array(stays)), "copies": copies[stays]})
        files.append(
            {"removed": put_table(store, removed).to_json(), "kept": put_table(store, kept).to_json()}
        )
        total.add(documents, own, stays, copies)
    return {"files": files, **total.record()}


class _Counts:
    """What a partition's files hold together."""

    def __init__(self) -> None:
        self.sums = dict.fromkeys(("documents_in", "documents_out", "bytes_in", "bytes_out"), 0)
        self.sums |= {f"{what}_{kind}": 0 for kind in KINDS for what in ("removed", "removed_bytes")}
        self.clusters: dict[str, int] = {}  # how many of the kept stand for 1, 2, 3–4, 5–8 … documents
        self.examples: list[list[Any]] = []
        self.shown: list[list[Any]] = []

    def add(
        self, documents: Rows, own: Rows, stays: npt.NDArray[np.bool_], copies: npt.NDArray[np.int64]
    ) -> None:
        length = documents["length"].astype(np.int64)
        gone = rows_of(own["location"])
        found = {"documents_in": len(documents), "documents_out": stays.sum()}
        found |= {"bytes_in": length.sum(), "bytes_out": length[stays].sum()}
        for number, kind in enumerate(KINDS):
            of_kind = gone[own["kind"] == number]
            found |= {f"removed_{kind}": len(of_kind), f"removed_bytes_{kind}": length[of_kind].sum()}
        self.sums = {name: count + int(found[name]) for name, count in self.sums.items()}
        sizes, counts = np.unique(1 << np.ceil(np.log2(copies[stays])).astype(np.int64), return_counts=True)
        for size, count in zip(sizes.tolist(), counts.tolist(), strict=True):
            self.clusters[str(size)] = self.clusters.get(str(size), 0) + count
        near = own[own["kind"] == 0]
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
    return [int(documents["id_high"][row]), *places, float(removal["similarity"])]


def _bands(masks: npt.NDArray[np.uint64]) -> pyarrow.Array:
    """Lists of the numbers of the bits that are set."""
    bits = masks[:, None] >> np.arange(MOST_BANDS, dtype=np.uint64) & np.uint64(1)
    row, band = np.nonzero(bits)
    offsets = np.append(0, np.cumsum(np.bincount(row, minlength=len(masks)))).astype(np.int32)
    return pyarrow.ListArray.from_arrays(offsets, pyarrow.array(band.astype(np.uint8)))
