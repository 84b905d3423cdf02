"""Where a document's tokens are, and which documents stand in a part of a shard.

A shard's documents are listed in its table of the index, in their order. From an id alone leads the lookup:
files of fixed-width entries, each of a range of ids and sorted by them. Ids are hashes, so an entry stands
near its place in proportion, and a read or two of a small part finds it in a file of any size. The files are
made without a shuffle: each shard's unit leaves a sorted run, and one task a file merges its ranges of all
runs."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ingot.pipelines.artifact import Artifact, File, put_file, put_json, read_file, read_range
from ingot.pipelines.shards import Span
from ingot.pipelines.store import Store
from ingot.pipelines.units import Unit, Workspace

ENTRY = np.dtype([("high", "<u8"), ("low", "<u8"), ("shard", "<u4"), ("row", "<u4")])
LOOKUP_ENTRIES = 4_000_000  # of a file of the lookup, about: 96 MB
READ_ENTRIES = 4096  # at a time, when one is looked for


@dataclass(frozen=True)
class Place:
    """A document in a shard: its tokens begin at `offset` of it; an end-of-text follows them."""

    document: str
    source: str
    split: str
    shard: str
    offset: int
    tokens: int
    position: int
    """Where it begins among the tokens of all shards of its split, put end to end."""


class Places:
    """The documents of a tokens artifact. Raises Damaged."""

    def __init__(self, artifact: Artifact) -> None:
        self.artifact = artifact
        meta = artifact.json("meta.json")
        self.sources: list[str] = meta["sources"]
        self.begins: dict[str, int] = {}  # shard → its first position in its split
        for shards in meta["shards"].values():
            sizes = [tokens for _, tokens in shards]
            starts = (np.cumsum(sizes) - sizes).tolist()
            self.begins |= dict(zip((name for name, _ in shards), starts, strict=True))

    def of(self, document: str) -> Place | None:
        """The place of the document with this id, or None where its tokens are in no shard."""
        entry = self._look_up(document)
        if entry is None:
            return None
        shard, row = entry
        [found] = self._table(shard).slice(row, 1).to_pylist()
        return self._place(found)

    def within(self, span: Span) -> list[Place]:
        """The documents that have tokens, or their end-of-text, in this part of a shard."""
        import pyarrow.compute

        split, _, name = span.shard.partition("/")
        table = self._table(int(name.removesuffix(".bin")))
        table = table.filter(pyarrow.compute.equal(table["split"], split))
        offsets = table["offset"].to_numpy()
        first = int(np.searchsorted(offsets, span.start, side="right")) - 1
        stop = int(np.searchsorted(offsets, span.stop, side="left"))
        return [self._place(row) for row in table.slice(first, stop - first).to_pylist()]

    def _table(self, shard: int) -> Any:
        return self.artifact.table(f"index/{shard:05d}.parquet")

    def _place(self, row: Mapping[str, Any]) -> Place:
        shard = f"{row['split']}/{row['shard']:05d}.bin"
        source = self.sources[row["shard"]]
        position = self.begins[shard] + row["offset"]
        return Place(row["id"], source, row["split"], shard, row["offset"], row["tokens"], position)

    def _look_up(self, document: str) -> tuple[int, int] | None:
        """(shard, row of its index) of a document."""
        names = self.artifact.names("lookup/")
        high, low = int(document[:16], 16), int(document[16:], 16)
        number = high * len(names) >> 64
        name = names[number]
        begin, end = 0, self.artifact.files[name].bytes // ENTRY.itemsize
        # The place in proportion, and the next one between what was read and the bounds that are left.
        least, most = (number << 64) // len(names), (number + 1 << 64) // len(names)
        while begin < end:
            guess = begin + (end - begin) * (high - least) // max(1, most - least)
            first = max(begin, min(guess - READ_ENTRIES // 2, end - READ_ENTRIES))
            count = min(READ_ENTRIES, end - first)
            data = self.artifact.read_range(name, first * ENTRY.itemsize, count * ENTRY.itemsize)
            entries = np.frombuffer(data, ENTRY)
            if (high, low) < (int(entries[0]["high"]), int(entries[0]["low"])):
                end, most = first, int(entries[0]["high"])
            elif (high, low) > (int(entries[-1]["high"]), int(entries[-1]["low"])):
                begin, least = first + count, int(entries[-1]["high"])
            else:
                found = entries[(entries["high"] == high) & (entries["low"] == low)]
                return (int(found[0]["shard"]), int(found[0]["row"])) if len(found) else None
        return None


def lookups_for(documents: int) -> int:
    """How many files the lookup of so many documents has."""
    return max(1, -(-documents // LOOKUP_ENTRIES))


def put_run(store: Store, documents: Sequence[str], shard: int, lookups: int) -> dict[str, Any]:
    """Stores the entries of a shard's documents, sorted; as JSON the file and where each lookup's begin."""
    ids = np.frombuffer(bytes.fromhex("".join(documents)), ">u8").reshape(-1, 2)
    entries = np.empty(len(ids), ENTRY)
    entries["high"], entries["low"] = ids.T
    entries["shard"], entries["row"] = shard, np.arange(len(ids))
    entries = _sorted(entries)
    bounds = [((number << 64) + lookups - 1) // lookups for number in range(1, lookups)]
    cuts = np.searchsorted(entries["high"], np.array(bounds, np.uint64)).tolist()
    return {"file": put_file(store, entries.tobytes()).to_json(), "cuts": [0, *cuts, len(entries)]}


def merge_lookups(workspace: Workspace, runs: list[dict[str, Any]], lookups: int) -> dict[str, File]:
    """The lookup's files from the runs of all shards."""
    listed = put_json(workspace.store, runs).to_json()
    units = [Unit(f"{number:05d}", {"runs": listed, "number": number}) for number in range(lookups)]
    merged = workspace.run("lookup", units, _merge)
    return {
        f"lookup/{unit.name}.bin": File.from_json(record["lookup"])
        for unit, record in zip(units, merged, strict=True)
    }


def _merge(store: Store, body: Mapping[str, Any]) -> dict[str, Any]:
    number, parts = body["number"], []
    for run in json.loads(read_file(store, File.from_json(body["runs"]), "the list of runs")):
        first, stop = (cut * ENTRY.itemsize for cut in run["cuts"][number : number + 2])
        parts.append(read_range(store, File.from_json(run["file"]), first, stop - first, "a run of ids"))
    entries = _sorted(np.frombuffer(b"".join(parts), ENTRY))
    return {"lookup": put_file(store, entries.tobytes()).to_json()}


def _sorted(entries: np.ndarray) -> np.ndarray:
    return entries[np.lexsort((entries["low"], entries["high"]))]
