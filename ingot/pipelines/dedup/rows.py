"""The rows that pass between steps: fixed-width, little-endian, so that a slice of a run is a range of bytes.

A document's *location* is (number of its documents file) << 32 | row. It says where to read and never decides
what goes; that is the *rank* (see `rank`), an integer that knows nothing of files: the least rank stays, and
of equal ranks the least id."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import numpy.typing as npt

from ingot.pipelines.sections import MOST_BANDS

Rows = np.ndarray[tuple[int], np.dtype[np.void]]
Numbers = npt.NDArray[np.int64]
Locations = npt.NDArray[np.uint64]


def _row(*names: str) -> np.dtype[np.void]:
    return np.dtype([(name, "<f8" if name == "similarity" else "<u8") for name in names])


# a document, and its shingles by place and number in the file's shingles, once it is signed
DOCUMENT = _row("id_high", "id_low", "rank", "length", "first_shingle", "shingles")
# a document and a hash of what makes it a copy of others: its address, or its content
KEY = _row("key_high", "key_low", "rank", "id_high", "id_low", "location")
# a document
PLACE = _row("location")
# a row of a documents file
ROW = _row("row")
# a copy, and the document that stays for it
FOLLOWER = _row("location", "leader", "leader_high", "leader_low")
# a document in a bucket; half an id orders equal ranks as well as the whole (2^-64)
BAND = _row("hash", "rank", "id_high", "location")
# two locations of which `better` has the better rank, and the bands they share, a bit each
PAIR = _row("worse", "better", "bands")
# two documents of one component; for a while either end may be the better one
LINK = _row("worse", "worse_rank", "worse_id", "better", "better_rank", "better_id")
# a document that a partition of the others asks for
ASK = _row("better", "partition")
# a pair whose similarity reaches the threshold
EDGE = _row(
    *("worse", "better", "similarity", "bands", "rank", "id_high"),
    *("better_rank", "better_high", "better_low", "better_stays"),
)
# a document of which it is decided whether it stays
DECISION = _row("location", "stays")
# a document that goes, and the one that stays for it
REMOVAL = _row("location", "witness", "witness_high", "witness_low", "similarity", "bands", "kind")
# a document that stays, and how many go for it
GAIN = _row("location", "copies")

KINDS = ("near", "exact", "url", "takedown")  # of a removal, by number
NOBODY = (1 << 64) - 1  # the witness of what is taken down
ROW_BITS = 32
BAND_BITS = MOST_BANDS.bit_length() - 1  # of a bucket's hash: the number of its band


def locations(file: int, rows: int) -> Locations:
    """The locations of a documents file's rows."""
    return (np.uint64(file) << np.uint64(ROW_BITS)) + np.arange(rows, dtype=np.uint64)


def files_of(places: Locations) -> Numbers:
    return (places >> np.uint64(ROW_BITS)).astype(np.int64)


def rows_of(places: Locations) -> Numbers:
    return (places & np.uint64((1 << ROW_BITS) - 1)).astype(np.int64)


def by_rank(rows: Rows, *groups: str) -> Numbers:
    """The order that sorts by the columns `groups` and within them by rank, the best first."""
    assert rows.dtype.names is not None
    ids = [rows[name] for name in ("id_low", "id_high") if name in rows.dtype.names]
    return np.lexsort([*ids, rows["rank"], *(rows[name] for name in reversed(groups))])


def begins(rows: Rows, *columns: str) -> npt.NDArray[np.bool_]:
    """Which of the sorted rows are the first with their values in `columns`."""
    first = np.ones(len(rows), bool)
    for name in columns:
        first[1:] &= rows[name][1:] == rows[name][:-1]
    first[1:] = ~first[1:]
    return first


def blocks(costs: Numbers, most: int) -> list[tuple[int, int]]:
    """Cuts a sequence of items into ranges that cost at most `most` and one item more."""
    cuts = np.flatnonzero(np.diff(np.cumsum(costs) // most)) + 1
    edges = [0, *cuts.tolist(), len(costs)]
    return [(start, stop) for start, stop in pairwise(edges) if start < stop]
