"""Rank: which of two documents stays.

In this order: the earlier snapshot, the source named earlier in `priority`, the higher quality, the longer
text, the lesser id. All but the id are packed into one integer of which the least is the best:

| bits | what |
|---|---|
| 12 | the snapshot |
| 8 | the source's place in `priority`; those not named come last, equal |
| 16 | the quality, as a bfloat16: two numbers count as equal that differ by less than 0.4 % |
| 28 | the bytes of UTF-8, up to 256 MiB |

That the snapshot comes first makes adding one cheap: nothing of an earlier snapshot is decided anew."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from ingot.errors import IngotError
from ingot.pipelines.sections import MOST_SNAPSHOT, MOST_SOURCES

_LENGTHS = 1 << 28

Ranks = npt.NDArray[np.uint64]


def ranks(
    snapshot: int, priority: int, quality: npt.NDArray[np.float32] | None, lengths: npt.NDArray[np.int64]
) -> Ranks:
    """The ranks of the documents of one source. `quality` [documents] may hold NaN, which is the worst, as
    is None for all; `lengths` are in bytes."""
    assert 0 <= snapshot <= MOST_SNAPSHOT, snapshot
    assert 0 <= priority < MOST_SOURCES, priority
    ranked = (_LENGTHS - 1 - np.minimum(lengths, _LENGTHS - 1)).astype(np.uint64)
    if quality is not None:
        ranked |= _descending(quality) << np.uint64(28)
    return ranked | np.uint64(snapshot << 52 | priority << 44)


def _descending(quality: npt.NDArray[np.float32]) -> Ranks:
    """16 bits that order as the numbers do, the greatest first and NaN last."""
    bits = np.where(quality == 0, np.float32(0), quality).view(np.uint32) >> 16  # −0 is 0
    ascending = np.where(bits >> 15 == 1, 0xFFFF - bits, bits + 0x8000)
    return np.where(np.isnan(quality), 0xFFFF, 0xFFFE - np.minimum(ascending, 0xFFFE)).astype(np.uint64)


def qualities(metadata: Sequence[str | None], field: str, file: str) -> npt.NDArray[np.float32]:
    """The number at `field` of each document's metadata, NaN where there is none. Raises IngotError for
    what is there and is no number."""
    found = np.full(len(metadata), np.nan, np.float32)
    for row, text in enumerate(metadata):
        value: Any = json.loads(text).get(field) if text else None
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise IngotError(
                f"dedup.quality: {field} is {json.dumps(value)} in row {row} of {file}, no number; name a "
                "field of numbers"
            )
        try:
            found[row] = value
        except OverflowError:  # JSON knows no largest integer
            found[row] = np.inf if value > 0 else -np.inf
    return found
