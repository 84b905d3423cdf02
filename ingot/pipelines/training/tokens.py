"""Rows of tokens from a tokens artifact, in an order that is a permutation of all there are.

Step s takes the rows that stand at positions s * rows … (s + 1) * rows - 1 of an endless sequence. Without a
mixture it goes through all rows once an epoch, in each epoch in another order. With one, each position is of
the source that the mixture deals it to, and every source goes through its own rows so, at its own pace. Rows
are numbered through all sources, in the order of their names."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ingot.pipelines.artifact import File, load, read_file
from ingot.pipelines.records import parse
from ingot.pipelines.shards import ShardReader, Span
from ingot.pipelines.store import Store
from ingot.pipelines.training.dataset import Share, shares
from ingot.pipelines.training.mixture import Mixture
from ingot.pipelines.training.permutation import shuffled_epochs
from ingot.pipelines.training.rows import PackedRows, Rows, RowSource, Windows

CACHE_BYTES = 512_000_000


class TokenDataset:
    """A `Dataset` of a tokens artifact's training split. `spec`: tokens (the artifact's key), context, rows
    (a step), seed, and where they are wanted: mix (source → weight, see `Mixture`), plans (the file of the
    list that `packing` made; without it documents are put end to end), mask_documents, cache_bytes."""

    def __init__(self, store: Store, spec: Mapping[str, Any]) -> None:
        artifact = load(store, spec["tokens"])
        assert artifact is not None, spec["tokens"]
        self.rows, self.seed = spec["rows"], spec["seed"]
        reader = ShardReader(artifact, spec.get("cache_bytes", CACHE_BYTES))
        shards = reader.meta["shards"]["train"]
        of_source = np.array(reader.meta["sources"], str)
        plans = None
        if spec.get("plans") is not None:
            what = "the list of plans"
            plans = parse(read_file(store, File.from_json(spec["plans"]), what), what)
        masked = spec.get("mask_documents", False)

        def rows_of(numbers: Sequence[int], what: str) -> RowSource:
            if plans is not None:
                return PackedRows(reader, [plans[n] for n in numbers], spec["context"], masked, what)
            return Windows(reader, [shards[n] for n in numbers], spec["context"], masked, what)

        self.mixture = Mixture(spec["mix"]) if spec.get("mix") else None
        if self.mixture is None:
            self.sources = [rows_of(range(len(shards)), "its train shards")]
        else:
            self.sources = [
                rows_of(np.flatnonzero(of_source == name).tolist(), f"its train shards of source {name!r}")
                for name in self.mixture.names
            ]
        self._bases = np.cumsum([0, *(source.count for source in self.sources)])

    @property
    def count(self) -> int:
        """How many rows there are."""
        return int(self._bases[-1])

    def numbers(self, positions: range) -> np.ndarray:
        """The rows at these positions of the endless sequence."""
        if self.mixture is None:
            return shuffled_epochs(positions, self.count, self.seed)
        sources, within = self.mixture(positions)
        numbers = np.empty_like(within)
        for number, (name, source) in enumerate(zip(self.mixture.names, self.sources, strict=True)):
            own = sources == number
            key = (self.seed, zlib.crc32(name.encode()))
            numbers[own] = self._bases[number] + shuffled_epochs(within[own], source.count, *key)
        return numbers

    def spans(self, number: int) -> list[Span]:
        """Where the targets of a row stand in the shards, in their order."""
        source = int(np.searchsorted(self._bases, number, side="right")) - 1
        return self.sources[source].spans(number - int(self._bases[source]))

    def share(self, step: int, rank: int, world: int, micro_batch: int) -> Share:
        ranges, size = shares(self.rows, rank, world, micro_batch)
        first, last = ranges[0].start, ranges[-1].stop
        base = step * self.rows
        numbers = self.numbers(range(base + first, base + last))
        rows = self._read(numbers)
        batches = [rows.batch(slice(own.start - first, own.stop - first), size) for own in ranges]
        return Share(batches, np.arange(first, last), numbers)

    def _read(self, numbers: np.ndarray) -> Rows:
        """The rows of these numbers."""
        if len(self.sources) == 1:
            return self.sources[0].read(numbers.tolist())
        of_source = np.searchsorted(self._bases, numbers, side="right") - 1
        parts = [
            source.read((numbers[of_source == number] - self._bases[number]).tolist())
            for number, source in enumerate(self.sources)
        ]
        order = np.argsort(np.argsort(of_source, kind="stable"), kind="stable")
        return Rows.joined(parts, order)
