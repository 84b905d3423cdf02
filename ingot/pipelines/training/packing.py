"""Best-fit packing: rows in which no document is cut unless it is longer than a row.

Best-fit decreasing (Ding et al., "Fewer Truncations Improve Language Modeling", arXiv:2404.10830): a document
that is longer than a row gives full rows of its own, and what is left of it is a piece like a whole short
document; the pieces are placed from the longest to the shortest, each into the row with the least room that
it fits. What stays free of a row is padding.

The rows of each shard are planned by themselves, from the lengths in its index alone: a task a shard leaves
its plan, and no one holds the corpus. So the documents of a row lie near each other, in one object."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ingot.pipelines.artifact import Artifact, File, put_file, put_json, read_file, read_table
from ingot.pipelines.store import Store
from ingot.pipelines.units import Unit, Workspace

_PIECE = np.dtype([("row", "<u4"), ("start", "<u4"), ("length", "<u4")])


@dataclass(frozen=True)
class Packed:
    """How all rows of a split are packed: the list of the shards' plans, and what it comes to."""

    plans: File
    rows: int
    padding_share: float  # of all positions
    documents_cut: int  # as they are longer than a row


def pack(workspace: Workspace, tokens: Artifact, context: int) -> Packed:
    """Plans the rows of `context` positions of the training shards, on the cluster."""
    shards = tokens.json("meta.json")["shards"]["train"]
    units = []
    for name, _ in shards:
        number = name.removeprefix("train/").removesuffix(".bin")
        index = tokens.files[f"index/{number}.parquet"].to_json()
        units.append(Unit(number, {"index": index, "context": context}))
    records = workspace.run("pack", units, plan_shard)
    plans = [
        {"shard": name, "rows": record["rows"], "plan": record["plan"]}
        for (name, _), record in zip(shards, records, strict=True)
    ]
    rows, filled, cut = (sum(record[name] for record in records) for name in ("rows", "filled", "cut"))
    padding = 1 - filled / (rows * context) if rows else 0.0
    return Packed(put_json(workspace.store, plans), rows, padding, cut)


def best_fit(lengths: np.ndarray, context: int) -> tuple[np.ndarray, int]:
    """The pieces of documents of these lengths that each row of `context` holds, and the number of rows. The
    pieces: an array of row, start (in all documents put end to end) and length, ordered by row, and within it
    from the longest."""
    ends = np.cumsum(lengths)
    pieces = []
    for start, length in zip((ends - lengths).tolist(), lengths.tolist(), strict=True):
        pieces += [(context, start + cut) for cut in range(0, length - context + 1, context)]
        if length % context:
            pieces.append((length % context, start + length - length % context))
    pieces.sort(key=lambda piece: (-piece[0], piece[1]))
    room: list[int] = []  # distinct amounts of room that rows have, ascending
    rows_with: dict[int, list[int]] = {}
    planned = np.empty(len(pieces), _PIECE)
    rows = 0
    for number, (length, start) in enumerate(pieces):
        place = bisect_left(room, length)
        if place == len(room):
            row, left, rows = rows, context - length, rows + 1
        else:
            found = room[place]
            row, left = rows_with[found].pop(), found - length
            if not rows_with[found]:
                del rows_with[found], room[place]
        planned[number] = (row, start, length)
        if left and left not in rows_with:
            insort(room, left)
        if left:
            rows_with.setdefault(left, []).append(row)
    return planned[np.argsort(planned["row"], kind="stable")], rows


def plan_shard(store: Store, body: Mapping[str, Any]) -> dict[str, Any]:
    import pyarrow.compute

    index = read_table(store, File.from_json(body["index"]), "the index", ["split", "tokens"])
    tokens = index.filter(pyarrow.compute.equal(index["split"], "train"))["tokens"].to_numpy()
    lengths = tokens + 1  # an end-of-text follows each document
    planned, rows = best_fit(lengths, body["context"])
    return {
        "plan": put_file(store, planned.tobytes()).to_json(),
        "rows": rows,
        "filled": int(lengths.sum()),
        "cut": int((lengths > body["context"]).sum()),
    }


class Plan:
    """The rows of one shard. Raises Damaged."""

    def __init__(self, store: Store, file: File, rows: int) -> None:
        self._pieces = np.frombuffer(read_file(store, file, "the plan of a shard's rows"), _PIECE)
        self._begins = np.searchsorted(self._pieces["row"], np.arange(rows + 1))

    def __getitem__(self, row: int) -> list[tuple[int, int]]:
        """Where the row's pieces begin and end in the shard."""
        pieces = self._pieces[self._begins[row] : self._begins[row + 1]]
        starts = pieces["start"].tolist()
        return [(start, start + size) for start, size in zip(starts, pieces["length"].tolist(), strict=True)]
