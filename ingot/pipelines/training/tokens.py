"""Rows of tokens from a tokens artifact, in an order that is a permutation of all there are.

Sample i is the tokens [i * context, (i + 1) * context] of a split's shards put end to end, context + 1 of
them, so that every token is predicted exactly once; the tail that fills no sample is left out. Step s takes
the samples that stand at positions s * rows … (s + 1) * rows - 1 of a sequence that goes through all samples
once an epoch, in each epoch in another order."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np

from ingot.errors import IngotError
from ingot.pipelines.artifact import Artifact, load
from ingot.pipelines.store import Store
from ingot.pipelines.training.dataset import Share, shares
from ingot.pipelines.training.permutation import shuffled_epochs

if TYPE_CHECKING:
    from ingot.model import Batch

CACHED_BYTES = 512_000_000  # of whole shards, a worker
READS_AT_ONCE = 8


class Samples:
    """The samples of one split of a tokens artifact, by number."""

    def __init__(self, artifact: Artifact, split: str, context: int) -> None:
        meta = artifact.json("meta.json")
        self.artifact, self.context = artifact, context
        self.dtype = np.dtype(meta["dtype"]).newbyteorder("<")
        self.names = [name for name, _ in meta["shards"][split]]
        self.ends = np.cumsum([tokens for _, tokens in meta["shards"][split]])
        self.count = max(0, int(self.ends[-1]) - 1) // context
        if not self.count:
            raise IngotError(
                f"{artifact.key}: its {split} shards hold {self.ends[-1]} tokens, less than one row of "
                f"{context} + 1; give more text, or set model.context lower"
            )
        # Whole shards are verified; where they don't fit, a permutation would throw each out again before
        # its next sample comes, so single samples are read, and those have no digest of their own.
        total = int(self.ends[-1]) * self.dtype.itemsize
        self.whole = total <= CACHED_BYTES
        self._shards: dict[int, np.ndarray] = {}

    def read(self, numbers: np.ndarray) -> np.ndarray:
        """The samples of these numbers, int64 of shape (len(numbers), context + 1). Raises Damaged."""
        if self.whole or len(numbers) < 2:
            rows = [self._sample(int(number)) for number in numbers]
        else:
            with ThreadPoolExecutor(READS_AT_ONCE) as pool:
                rows = list(pool.map(self._sample, numbers.tolist()))
        return np.stack(rows).astype(np.int64) if rows else np.zeros((0, self.context + 1), np.int64)

    def _sample(self, number: int) -> np.ndarray:
        start = number * self.context
        end = start + self.context + 1
        parts = []
        shard = int(np.searchsorted(self.ends, start, side="right"))
        while start < end:
            base = int(self.ends[shard - 1]) if shard else 0
            last = min(end, int(self.ends[shard]))
            parts.append(self._tokens(shard, start - base, last - start))
            start, shard = last, shard + 1
        return np.concatenate(parts)

    def _tokens(self, shard: int, offset: int, count: int) -> np.ndarray:
        if not self.whole:
            size = self.dtype.itemsize
            data = self.artifact.read_range(self.names[shard], offset * size, count * size)
            return np.frombuffer(data, self.dtype)
        if shard not in self._shards:
            self._shards[shard] = np.frombuffer(self.artifact.read(self.names[shard]), self.dtype)
        return self._shards[shard][offset : offset + count]


class TokenDataset:
    """A `Dataset` of a tokens artifact's training split. `spec`: tokens (the artifact's key), context, rows
    (a step), seed."""

    def __init__(self, store: Store, spec: Mapping[str, Any]) -> None:
        artifact = load(store, spec["tokens"])
        assert artifact is not None, spec["tokens"]
        self.samples = Samples(artifact, "train", spec["context"])
        self.rows, self.seed = spec["rows"], spec["seed"]

    def numbers(self, positions: range) -> np.ndarray:
        """The samples at these positions of the endless sequence."""
        return shuffled_epochs(positions, self.samples.count, self.seed)

    def share(self, step: int, rank: int, world: int, micro_batch: int) -> Share:
        ranges, size = shares(self.rows, rank, world, micro_batch)
        base = step * self.rows
        numbers = [self.numbers(range(base + own.start, base + own.stop)) for own in ranges]
        batches = [next_token_batch(self.samples.read(each), size) for each in numbers]
        return Share(batches, np.arange(ranges[0].start, ranges[-1].stop), np.concatenate(numbers))


def next_token_batch(samples: np.ndarray, rows: int) -> Batch:
    """A batch of `rows` rows from samples of context + 1 tokens: each token predicts the next one. Rows that
    are missing are filled up with rows that count nothing."""
    import torch

    from ingot.model import IGNORED, Batch

    tokens_BT = torch.zeros((rows, samples.shape[1] - 1), dtype=torch.int64)
    targets_BT = torch.full_like(tokens_BT, IGNORED)
    tokens_BT[: len(samples)] = torch.from_numpy(samples[:, :-1])
    targets_BT[: len(samples)] = torch.from_numpy(samples[:, 1:])
    return Batch(tokens_BT, targets_BT)
