"""Data between steps: sorted runs in the store, of which a task reads only its slice.

A task of one step writes a run: one file of fixed-width rows, sorted, with the offset of every partition
kept in its record. A task of the next step reads its partition from all runs by ranged reads. The driver only
passes the list of runs on, as an object of its own (a catalogue), so that the bodies of units stay small."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt

from ingot.pipelines.artifact import File, put_file, read_file, read_range
from ingot.pipelines.dedup.rows import ROW_BITS, Rows
from ingot.pipelines.store import Store

READERS = 8  # requests at once of one task
GAP_BYTES = 128_000  # two slices nearer than this are read in one request

Bounds = npt.NDArray[np.uint64]
Counts = npt.NDArray[np.int64]


def hash_bounds(partitions: int) -> Bounds:
    """The least value of each partition of the 64-bit hashes."""
    return np.array([(part << 64) // partitions for part in range(partitions)], np.uint64)


def location_bounds(partitions: int, files: int) -> Bounds:
    """The least location of each partition of the documents files."""
    return np.array([(part * files // partitions) << ROW_BITS for part in range(partitions)], np.uint64)


def partition_of(bounds: Bounds, value: int) -> int:
    """The partition that `value` belongs to."""
    return int(np.searchsorted(bounds, np.uint64(value), side="right")) - 1


def put_rows(store: Store, rows: Rows | npt.NDArray[np.uint64]) -> dict[str, Any]:
    """Stores the rows as one file and returns its entry."""
    return put_file(store, rows.tobytes(), rows=len(rows)).to_json()


def put_run(store: Store, rows: Rows, column: str, bounds: Bounds) -> dict[str, Any]:
    """Stores rows that are sorted by `column` as a run, cut at `bounds`."""
    offsets = [*np.searchsorted(rows[column], bounds).tolist(), len(rows)]
    return {"file": put_rows(store, rows), "offsets": offsets}


def put_catalogue(store: Store, entries: Iterable[Any]) -> dict[str, Any]:
    """Stores the list of what a step's tasks wrote, for the tasks of a later step."""
    return put_file(store, json.dumps(list(entries), separators=(",", ":")).encode()).to_json()


def read_catalogue(store: Store, entry: Mapping[str, Any]) -> list[Any]:
    entries: list[Any] = json.loads(read_file(store, File.from_json(entry), "a catalogue of runs"))
    return entries


def read_rows(store: Store, entry: Mapping[str, Any], dtype: np.dtype[np.void]) -> Rows:
    """The whole file of rows, verified."""
    return np.frombuffer(read_file(store, File.from_json(entry), "a file of rows"), dtype)


def read_partition(
    store: Store, runs: Sequence[Mapping[str, Any]], part: int, dtype: np.dtype[np.void]
) -> Rows:
    """The rows of partition `part` of all runs, run after run."""

    def slice_of(run: Mapping[str, Any]) -> bytes:
        start, stop = (offset * dtype.itemsize for offset in run["offsets"][part : part + 2])
        return read_range(store, File.from_json(run["file"]), start, stop - start, "a run of rows")

    with ThreadPoolExecutor(READERS) as pool:
        return np.frombuffer(b"".join(pool.map(slice_of, runs)), dtype)


def read_slices(store: Store, file: File, starts: Counts, lengths: Counts) -> bytes:
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
