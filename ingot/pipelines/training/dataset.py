"""What the loop asks of data: a worker's share of a step, from arithmetic alone.

A dataset is a class with this protocol, named in a job as "module:Class". It holds no position: the rows of
step s are a function of its specification and s, so resuming, another number of workers and going back are
the same arithmetic. Fetching may be slow (the loop asks for coming steps while this one runs, in several
threads), but must not depend on what was asked before."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from ingot.pipelines.store import Store

if TYPE_CHECKING:
    from ingot.model import Batch


@dataclass(frozen=True)
class Share:
    """What one rank reads of a step: micro batches, and which rows of the global batch are in them."""

    batches: Sequence[Batch]
    positions: np.ndarray  # of its rows in the global batch, from 0
    samples: np.ndarray  # the number, in the dataset, of the sample at each of them

    @property
    def bytes(self) -> int:
        """Of its tensors."""
        tensors = [tensor for batch in self.batches for tensor in vars(batch).values() if tensor is not None]
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


class Dataset(Protocol):
    """`spec` is JSON: all that the dataset is made from, such as an artifact's key, a seed, rows a step."""

    def __init__(self, store: Store, spec: Mapping[str, Any]) -> None: ...

    def share(self, step: int, rank: int, world: int, micro_batch: int) -> Share:
        """Rank `rank`'s share of the global batch of `step` (from 0), cut into micro batches of at most
        `micro_batch` rows. Every rank gives the same number of them, and a rank that has fewer rows fills
        up with rows that count nothing (targets -100): the ranks meet in every forward pass. Which sample
        stands at which position does not depend on the number of ranks."""


def load_by_name(name: str) -> Any:
    """What "module:attribute" names."""
    module, _, attribute = name.partition(":")
    return getattr(import_module(module), attribute)


def shares(rows: int, rank: int, world: int, micro_batch: int) -> tuple[list[range], int]:
    """The rows of a global batch of `rows` that are rank `rank`'s, one range a micro batch, and the number
    of rows that every micro batch of every rank is to be filled up to.

    The ranks' shares are contiguous and as equal as possible, and so are the micro batches of a share."""
    start, end = rows * rank // world, rows * (rank + 1) // world
    largest = -(-rows // world)
    count = -(-largest // micro_batch)
    own = end - start
    cuts = [start + own * number // count for number in range(count + 1)]
    return [range(*cut) for cut in pairwise(cuts)], -(-largest // count)
