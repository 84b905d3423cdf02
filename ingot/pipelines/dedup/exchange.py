"""Data between steps: runs in the store, of which a task reads only its slice.

A task of one step writes a run, one file: the bytes of each partition in order, then a footer, which has two
numbers for each partition that is not empty: which it is, and where it ends (little-endian, 64 bits). A task
of the next step reads its partition of all runs by ranged reads. No task reads from more than FAN_IN runs:
where there are more, merging steps come between, which cut the partitions into columns as they join runs (a
radix exchange), so that each task moves about MERGED_BYTES however large the corpus is."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ingot.pipelines.artifact import File, put_file, read_file, read_range
from ingot.pipelines.dedup.rows import ROW_BITS, Numbers, Rows
from ingot.pipelines.store import Store

FAN_IN = 64  # runs that one task reads from, at most
MERGED_BYTES = 128_000_000  # of a merged run, about
READERS = 8  # requests at once of one task
SMALL_RUN = 64_000  # bytes of a run that is read whole: one request, not two
CELL = 1024  # rows of an index that are read at least
GAP_BYTES = 128_000  # two slices nearer than this are read in one request

Bounds = npt.NDArray[np.uint64]
Cuts = Sequence[Sequence[int]]  # the documents files of each snapshot, and the partitions they are cut into
Run = Mapping[str, Any]  # its file, and the bytes of it that are no footer


def hash_bounds(partitions: int) -> Bounds:
    """The least value of each partition of the 64-bit hashes."""
    return np.array([(part << 64) // partitions for part in range(partitions)], np.uint64)


def location_bounds(cuts: Cuts) -> Bounds:
    """The least location of each partition of the documents files."""
    return np.array([first << ROW_BITS for first in first_files(cuts)], np.uint64)


def first_files(cuts: Cuts) -> list[int]:
    """The first documents file of each partition."""
    found, base = [], 0
    for files, partitions in cuts:
        found += [base + part * files // partitions for part in range(partitions)]
        base += files
    return found


def partitions_of(bounds: Bounds, values: npt.NDArray[np.uint64]) -> Numbers:
    """The partition that each value belongs to."""
    return np.searchsorted(bounds, values, side="right") - 1


def put_rows(store: Store, rows: Rows | npt.NDArray[np.uint64]) -> dict[str, Any]:
    """Stores the rows as one file and returns its entry."""
    return put_file(store, rows.tobytes(), rows=len(rows)).to_json()


def read_rows(store: Store, entry: Mapping[str, Any], dtype: np.dtype[np.void]) -> Rows:
    """The whole file of rows, verified."""
    return np.frombuffer(read_file(store, File.from_json(entry), "a file of rows"), dtype)


def put_run(store: Store, rows: Rows, column: str, bounds: Bounds) -> dict[str, Any]:
    """Stores rows that are sorted by `column` as a run, cut at `bounds`."""
    offsets = np.append(np.searchsorted(rows[column], bounds), len(rows)) * rows.itemsize
    return _put_run(store, rows.tobytes(), offsets, 0)


def put_segments(store: Store, data: bytes, sizes: Numbers, first: int = 0) -> dict[str, Any]:
    """Stores bytes as a run whose partitions, from `first` on, are of these sizes."""
    return _put_run(store, data, np.append(0, np.cumsum(sizes)), first)


def _put_run(store: Store, data: bytes, offsets: Numbers, first: int) -> dict[str, Any]:
    filled = np.flatnonzero(np.diff(offsets))
    footer = np.stack([first + filled, offsets[filled + 1]], axis=1).astype("<u8").tobytes()
    return {"file": put_file(store, data + footer).to_json(), "bytes": len(data)}


def read_partition(store: Store, runs: Sequence[Run], part: int, dtype: np.dtype[np.void]) -> Rows:
    """The rows of partition `part` of all runs, run after run."""
    return np.frombuffer(b"".join(read_segments(store, runs, part)), dtype)


def read_run(store: Store, run: Run, dtype: np.dtype[np.void]) -> Rows:
    """The rows of all partitions of a run."""
    return np.frombuffer(
        read_range(store, File.from_json(run["file"]), 0, run["bytes"], "a run of rows"), dtype
    )


def read_segments(store: Store, runs: Sequence[Run], part: int) -> Iterator[bytes]:
    """The bytes of partition `part` of each run, a few runs at once."""
    with ThreadPoolExecutor(READERS) as pool:
        for at in range(0, len(runs), READERS):
            yield from pool.map(lambda run: _read(store, run, part, part + 1)[0], runs[at : at + READERS])


def _read(store: Store, run: Run, first: int, end: int) -> tuple[bytes, Numbers]:
    """The bytes of the partitions first … end - 1 of a run, and how many are of each."""
    file, what, size = File.from_json(run["file"]), "a run of rows", run["bytes"]
    whole = read_range(store, file, 0, file.bytes, what) if file.bytes <= SMALL_RUN else None
    footer = read_range(store, file, size, file.bytes - size, what) if whole is None else whole[size:]
    filled, ends = np.frombuffer(footer, "<u8").astype(np.int64).reshape(-1, 2).T
    # where each partition ends, an empty one where the one before it does
    place = np.searchsorted(filled, np.arange(first, end + 1), side="left")
    offsets = np.append(0, ends)[place]
    start, stop = int(offsets[0]), int(offsets[-1])
    data = read_range(store, file, start, stop - start, what) if whole is None else whole[start:stop]
    return data, np.diff(offsets)


@dataclass(frozen=True)
class Column:
    """Partitions first … end - 1 of an exchange, and the runs that hold them."""

    first: int
    end: int
    runs: Sequence[Run]

    def cut(self) -> list[Column]:
        """What one merge makes of it: as many columns as keep a group's merged run near MERGED_BYTES."""
        groups = -(-len(self.runs) // FAN_IN)
        largest = max(sum(run["bytes"] for run in self.runs[at::groups]) for at in range(groups))
        columns = min(self.end - self.first, FAN_IN, max(1, -(-largest // MERGED_BYTES)))
        edges = [self.first + (self.end - self.first) * at // columns for at in range(columns + 1)]
        return [Column(edges[at], edges[at + 1], self.runs) for at in range(columns)]

    def groups(self) -> list[Sequence[Run]]:
        """Its runs by the merges that read them."""
        count = -(-len(self.runs) // FAN_IN)
        return [self.runs[at::count] for at in range(count)]


def merge_runs(store: Store, body: Mapping[str, Any]) -> dict[str, Any]:
    """Several runs → one that holds their partitions `first` … `end` - 1.

    body: `runs`, `first`, `end`."""
    first, end = body["first"], body["end"]
    with ThreadPoolExecutor(READERS) as pool:
        parts = list(pool.map(lambda run: _read(store, run, first, end), body["runs"]))
    sizes = np.stack([own for _, own in parts])
    starts = np.cumsum(sizes, axis=1) - sizes
    data = b"".join(
        parts[run][0][starts[run, part] : starts[run, part] + sizes[run, part]]
        for part in range(end - first)
        for run in range(len(parts))
    )
    return {"run": put_segments(store, data, sizes.sum(axis=0), first)}


def read_slices(store: Store, file: File, starts: Numbers, lengths: Numbers) -> bytes:
    """The bytes of the slices, one after another. They ascend and don't overlap; near ones share a read."""
    if len(starts) == 0:
        return b""
    first = np.flatnonzero(np.append(True, starts[1:] - (starts + lengths)[:-1] > GAP_BYTES))
    last = np.append(first[1:], len(starts)) - 1

    def group(index: int) -> bytes:
        begin, end = first[index], last[index]
        start, stop = int(starts[begin]), int(starts[end] + lengths[end])
        data = read_range(store, file, start, stop - start, "a file of rows")
        view = memoryview(data)
        within = (starts[begin : end + 1] - starts[begin]).tolist()
        taken = zip(within, lengths[begin : end + 1].tolist(), strict=True)
        return b"".join(view[start : start + length] for start, length in taken)

    with ThreadPoolExecutor(READERS) as pool:
        return b"".join(pool.map(group, range(len(first))))


def put_index(store: Store, rows: Rows, column: str) -> dict[str, Any]:
    """Stores rows that are sorted by `column` as one file in which `look_up` finds a few: after the rows
    stand fences, the first value of every CELL rows."""
    values = rows[column]
    fences = values[::CELL].astype("<u8").tobytes()
    return {
        "file": put_file(store, rows.tobytes() + fences).to_json(),
        "rows": len(rows),
        "least": int(values[0]) if len(rows) else 0,
        "greatest": int(values[-1]) if len(rows) else 0,
    }


def look_up(
    store: Store,
    indexes: Sequence[Mapping[str, Any]],
    column: str,
    wanted: npt.NDArray[np.uint64],
    dtype: np.dtype[np.void],
) -> Rows:
    """The rows of the indexes whose `column` is among the ascending values `wanted`. Only the cells that may
    hold some are read."""
    parts = [np.empty(0, dtype)]
    for index in indexes:
        own = wanted[(wanted >= index["least"]) & (wanted <= index["greatest"])]
        if len(own) == 0 or index["rows"] == 0:
            continue
        file = File.from_json(index["file"])
        size = index["rows"] * dtype.itemsize
        fences = np.frombuffer(read_range(store, file, size, file.bytes - size, "an index"), "<u8")
        # equal values may have begun in the cell before
        first = np.maximum(np.searchsorted(fences, own, side="left") - 1, 0)
        last = np.searchsorted(fences, own, side="right") - 1
        edges = np.zeros(len(fences) + 1, np.int64)
        np.add.at(edges, first, 1)
        np.add.at(edges, last + 1, -1)
        cells = np.flatnonzero(np.cumsum(edges)[:-1])
        starts = cells * CELL
        lengths = np.minimum(starts + CELL, index["rows"]) - starts
        data = read_slices(store, file, starts * dtype.itemsize, lengths * dtype.itemsize)
        rows = np.frombuffer(data, dtype)
        parts.append(rows[np.isin(rows[column], own)])
    return np.concatenate(parts)
