"""Preference pairs: the real body of a function against another function's.

The rejected answer is as good a piece of code as the chosen one, and as long; only the prompt tells which
is right. Nearly every answer is chosen once and rejected once, so neither its length nor its style nor how
common it is gives it away."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from ingot.pipelines.answers import Answer, dealt, padded
from ingot.pipelines.artifact import File, put_table, read_table
from ingot.pipelines.reference import read_scores
from ingot.pipelines.store import Store
from ingot.pipelines.training.dataset import shares
from ingot.pipelines.training.permutation import shuffled_epochs

if TYPE_CHECKING:
    import pyarrow

    from ingot.model import Batch, PreferenceBatch

NEIGHBOURS = 16  # answers next in length that are tried, on either side


def put_pairs(store: Store, functions: pyarrow.Table, context: int) -> File:
    """Stores one pair for each function that has a partner, as Parquet with the columns id and rejected_id
    (of functions), prompt, chosen and rejected (token ids).

    `functions` is a table of `conversations.first_functions`. The partner is the answer nearest in length
    that comes from another document and fits into `context` tokens after the prompt."""
    import pyarrow

    prompt_lengths = _lengths(functions["prompt"])
    answer_lengths = _lengths(functions["answer"])
    documents = functions["document"].to_numpy()
    by_length = np.lexsort((functions["id"].to_numpy().astype(str), answer_lengths))
    rejected = np.full(len(by_length), -1)
    for place, index in enumerate(by_length):
        for neighbour in _outwards(place, len(by_length)):
            other = by_length[neighbour]
            fits = prompt_lengths[index] + answer_lengths[other] <= context
            if fits and documents[other] != documents[index]:
                rejected[index] = other
                break
    paired = np.flatnonzero(rejected >= 0)
    chosen, others = functions.take(paired), functions.take(rejected[paired])
    columns = {
        "id": chosen["id"],
        "rejected_id": others["id"],
        "prompt": chosen["prompt"],
        "chosen": chosen["answer"],
        "rejected": others["answer"],
    }
    return put_table(store, pyarrow.table(columns).combine_chunks())


class PairDataset:
    """A training `Dataset` (see training/dataset.py) of preference pairs. `spec`: pairs (a file of
    `put_pairs`), scores (the files of the reference's scores of them), rows (pairs a step), seed."""

    def __init__(self, store: Store, spec: Mapping[str, Any]) -> None:
        names = ("prompt", "chosen", "rejected")
        table = read_table(store, File.from_json(spec["pairs"]), "pairs", list(names))
        self.pairs = {name: table[name].combine_chunks() for name in names}
        self.reference = read_scores(store, [File.from_json(entry) for entry in spec["scores"]])
        self.rows, self.seed = spec["rows"], spec["seed"]

    def microbatches(self, step: int, rank: int, world: int, micro_batch: int) -> list[Batch]:
        positions = range(step * self.rows, (step + 1) * self.rows)
        chosen = shuffled_epochs(positions, len(self.reference.chosen_P), self.seed)
        lengths = np.stack([_lengths(column.take(chosen)) for column in self.pairs.values()])
        order = chosen[dealt(lengths.sum(axis=0), world)]
        ranges, size = shares(self.rows, rank, world, max(1, micro_batch // 2))  # a pair is two rows
        return [self._batch(order[own.start : own.stop], size) for own in ranges]

    def _batch(self, numbers: np.ndarray, size: int) -> PreferenceBatch:
        import torch

        from ingot.model import PreferenceBatch

        columns = {name: column.take(numbers).to_pylist() for name, column in self.pairs.items()}
        nothing: list[Answer] = [([0], [])] * (size - len(numbers))
        answers = [
            pair
            for side in ("chosen", "rejected")
            for pair in [*zip(columns["prompt"], columns[side], strict=True), *nothing]
        ]
        reference = torch.zeros((2, size))
        for row, sums in enumerate((self.reference.chosen_P, self.reference.rejected_P)):
            reference[row, : len(numbers)] = torch.from_numpy(sums[numbers])
        return PreferenceBatch(*padded(answers), *reference)


def _outwards(place: int, size: int) -> Iterator[int]:
    """The next place, the one before, the second next …"""
    for distance in range(1, NEIGHBOURS + 1):
        yield from (other for other in (place + distance, place - distance) if 0 <= other < size)


def _lengths(lists: pyarrow.Array | pyarrow.ChunkedArray) -> np.ndarray:
    import pyarrow.compute

    return np.asarray(pyarrow.compute.list_value_length(lists))
