"""Rows of tokens from shards, by number: cut from all documents put end to end, or packed from whole ones.

In both a document begins at the end-of-text before it, from which its first token is predicted, and ends
where its own end-of-text is predicted; so does a prompt begin when the model is sampled from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from ingot.errors import IngotError
from ingot.pipelines.artifact import File
from ingot.pipelines.shards import ShardReader, Span
from ingot.pipelines.training.packing import Plan

if TYPE_CHECKING:
    from ingot.model import Batch

PLANS_KEPT = 128  # of shards' rows


@dataclass(frozen=True)
class Rows:
    """Tokens and the ones to predict (int64, IGNORED where none counts), and for each position the number of
    its document within the row (int32), or None where attention crosses documents."""

    tokens_BT: np.ndarray
    targets_BT: np.ndarray
    documents_BT: np.ndarray | None

    @staticmethod
    def joined(parts: Sequence[Rows], order: np.ndarray) -> Rows:
        """The rows of all parts, of which `order` says which comes first, second and so on."""

        def rows(arrays: Sequence[np.ndarray]) -> np.ndarray:
            return np.concatenate(arrays)[order]

        documents = [part.documents_BT for part in parts if part.documents_BT is not None]
        return Rows(
            rows([part.tokens_BT for part in parts]),
            rows([part.targets_BT for part in parts]),
            rows(documents) if documents else None,
        )

    def batch(self, own: slice, size: int) -> Batch:
        """A batch of `size` rows: these, filled up with rows that count nothing."""
        import torch

        from ingot.model import IGNORED, Batch

        def filled(rows: np.ndarray, value: int) -> torch.Tensor:
            whole = np.full((size, rows.shape[1]), value, rows.dtype)
            whole[: len(rows[own])] = rows[own]
            return torch.from_numpy(whole)

        documents_BT = None if self.documents_BT is None else filled(self.documents_BT, 0)
        return Batch(filled(self.tokens_BT, 0), filled(self.targets_BT, IGNORED), documents_BT=documents_BT)


class RowSource(Protocol):
    """Rows that have numbers from 0."""

    count: int

    def spans(self, number: int) -> list[Span]:
        """Where the targets of a row stand, in their order."""

    def read(self, numbers: Sequence[int]) -> Rows:
        """These rows. Raises Damaged."""


class Windows:
    """Concatenate and cut. Row i predicts the tokens [i * context + 1, (i + 1) * context] of the shards put
    end to end, so that every token but the first is predicted exactly once; the tail that fills no row is
    left out. `what`: what the shards are, in an error."""

    def __init__(
        self, reader: ShardReader, shards: Sequence[tuple[str, int]], context: int, masked: bool, what: str
    ) -> None:
        self.reader, self.context, self.masked = reader, context, masked
        self.names = [name for name, _ in shards]
        self.ends = np.cumsum([tokens for _, tokens in shards])
        total = int(self.ends[-1]) if shards else 0
        self.count = max(0, total - 1) // context
        if not self.count:
            raise IngotError(
                f"{reader.artifact.key}: {what} hold {total} tokens, less than one row of {context} + 1; "
                "give more text, or set model.context lower"
            )

    def spans(self, number: int) -> list[Span]:
        return self._spans(number * self.context + 1, (number + 1) * self.context + 1)

    def read(self, numbers: Sequence[int]) -> Rows:
        tokens = self.tokens(numbers)
        documents = None
        if self.masked:
            begins = tokens[:, :-1] == self.reader.meta["end_of_text"]
            documents = (np.cumsum(begins, axis=1) - begins[:, :1]).astype(np.int32)
        return Rows(tokens[:, :-1], tokens[:, 1:], documents)

    def tokens(self, numbers: Sequence[int]) -> np.ndarray:
        """The tokens of these rows and the last one to predict: int64 of shape (rows, context + 1)."""
        spans = [self._spans(number * self.context, (number + 1) * self.context + 1) for number in numbers]
        parts = self.reader.read([span for of_row in spans for span in of_row])
        flat = np.concatenate([np.zeros(0, np.int64), *parts])
        return flat.reshape(len(numbers), self.context + 1)

    def _spans(self, start: int, stop: int) -> list[Span]:
        spans = []
        shard = int(np.searchsorted(self.ends, start, side="right"))
        while start < stop:
            base = int(self.ends[shard - 1]) if shard else 0
            last = min(stop, int(self.ends[shard]))
            if start < last:
                spans.append(Span(self.names[shard], start - base, last - base))
            start, shard = last, shard + 1
        return spans


class PackedRows:
    """The rows that `packing` planned. `plans`: of each shard its name (shard), how many rows it has (rows),
    and the plan's file (plan)."""

    def __init__(
        self,
        reader: ShardReader,
        plans: Sequence[Mapping[str, Any]],
        context: int,
        masked: bool,
        what: str,
    ) -> None:
        self.reader, self.context, self.masked = reader, context, masked
        self.plans = plans
        self.ends = np.cumsum([plan["rows"] for plan in plans])
        self.count = int(self.ends[-1]) if plans else 0
        if not self.count:
            raise IngotError(f"{reader.artifact.key}: {what} hold no document; give more text")
        self._plan = lru_cache(PLANS_KEPT)(self._read_plan)

    def spans(self, number: int) -> list[Span]:
        shard = int(np.searchsorted(self.ends, number, side="right"))
        row = number - (int(self.ends[shard - 1]) if shard else 0)
        return [Span(self.plans[shard]["shard"], *piece) for piece in self._plan(shard)[row]]

    def read(self, numbers: Sequence[int]) -> Rows:
        from ingot.model import IGNORED

        shape = (len(numbers), self.context)
        tokens, targets = np.zeros(shape, np.int64), np.full(shape, IGNORED, np.int64)
        documents = np.zeros(shape, np.int32)
        pieces = [(row, span) for row, number in enumerate(numbers) for span in self.spans(number)]
        # with the token before each piece, from which its first one is predicted
        read = self.reader.read([Span(shard, max(0, start - 1), stop) for _, (shard, start, stop) in pieces])
        place = dict.fromkeys(range(len(numbers)), 0)
        for (row, span), found in zip(pieces, read, strict=True):
            first, last = place[row], place[row] + span.stop - span.start
            targets[row, first:last] = found[len(found) - (last - first) :]
            tokens[row, first] = found[0] if span.start else self.reader.meta["end_of_text"]
            tokens[row, first + 1 : last] = targets[row, first : last - 1]
            documents[row, last:] += 1
            place[row] = last
        return Rows(tokens, targets, documents if self.masked else None)

    def _read_plan(self, shard: int) -> Plan:
        entry = self.plans[shard]
        return Plan(self.reader.artifact.store, File.from_json(entry["plan"]), entry["rows"])
