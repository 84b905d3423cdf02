"""The rows that pass between steps: fixed-width, little-endian, so that a slice of a run is a range of bytes.

A document's *location* is (number of its documents file) << 32 | row. It says where to read and never decides
what goes; that is the *rank*, a total order that knows nothing of files: the longest text (bytes of UTF-8)
first, then the least id."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import numpy.typing as npt

Rows = np.ndarray[tuple[int], np.dtype[np.void]]


def _row(*names: str) -> np.dtype[np.void]:
    return np.dtype([(name, "<f8" if name == "similarity" else "<u8") for name in names])


# a document and the hash of its normalised content
CONTENT = _row("key_high", "key_low", "length", "id_high", "id_low", "location")
# one of several documents of equal content: `copies` of them for the one that stays, 0 for the others
COPY = _row("location", "copies", "witness", "witness_high", "witness_low")
# a document as `sign` leaves it, its shingles by place and number in the file's shingles; the rest as in COPY
DOCUMENT = _row(
    *("id_high", "id_low", "length", "first_shingle", "shingles"),
    *("copies", "witness", "witness_high", "witness_low"),
)
# a document in a bucket; half an id orders equal lengths as well as the whole (2^-64)
BAND = _row("hash", "length", "id_high", "location")
# two locations of which `better` has the better rank
PAIR = _row("worse", "better")
EDGE = _row("worse", "better", "similarity")
# a document with a verified pair
NODE = _row("location", "length", "id_high", "id_low", "copies")
# a near duplicate that goes, with its own copies, and the kept document it goes for
REMOVAL = _row("location", "copies", "witness", "witness_high", "witness_low", "similarity")
# a kept document, and how many more it stands for
GAIN = _row("location", "copies")

ROW_BITS = 32


def locations(file: int, rows: int) -> npt.NDArray[np.uint64]:
    """The locations of a documents file's rows."""
    return (np.uint64(file) << np.uint64(ROW_BITS)) + np.arange(rows, dtype=np.uint64)


def files_of(places: npt.NDArray[np.uint64]) -> npt.NDArray[np.int64]:
    return (places >> np.uint64(ROW_BITS)).astype(np.int64)


def rows_of(places: npt.NDArray[np.uint64]) -> npt.NDArray[np.int64]:
    return (places & np.uint64((1 << ROW_BITS) - 1)).astype(np.int64)


def by_rank(rows: Rows, *groups: str) -> npt.NDArray[np.int64]:
    """The order that sorts by the columns `groups` and within them by rank, the best first."""
    assert rows.dtype.names is not None
    ids = [rows[name] for name in ("id_low", "id_high") if name in rows.dtype.names]
    return np.lexsort([*ids, ~rows["length"], *(rows[name] for name in reversed(groups))])


def blocks(costs: npt.NDArray[np.int64], most: int) -> list[tuple[int, int]]:
    """Cuts a sequence of items into ranges that cost at most `most` and one item more."""
    cuts = np.flatnonzero(np.diff(np.cumsum(costs) // most)) + 1
    edges = [0, *cuts.tolist(), len(costs)]
    return [(start, stop) for start, stop in pairwise(edges) if start < stop]
