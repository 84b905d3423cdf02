"""Documents files as numpy arrays over Arrow's own buffers, and ids as pairs of integers."""

from __future__ import annotations

import binascii
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow

from ingot.pipelines.artifact import File, read_table
from ingot.pipelines.store import Store


def read_columns(store: Store, entry: Mapping[str, Any], columns: list[str]) -> pyarrow.Table:
    return read_table(store, File.from_json(entry), "a documents file", columns)


def utf8(column: pyarrow.ChunkedArray) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    """A column of strings as its bytes and the offsets [rows + 1] of its rows in them."""
    if len(column) == 0:
        return np.zeros(0, np.uint8), np.zeros(1, np.int64)
    array = pyarrow.concat_arrays(column.cast(pyarrow.large_string()).chunks)
    _, offsets, data = array.buffers()
    bounds = np.frombuffer(offsets, np.int64, len(array) + 1, array.offset * 8)
    return np.frombuffer(data or b"", np.uint8), bounds


def ids(column: pyarrow.ChunkedArray) -> npt.NDArray[np.uint64]:
    """Ids of 32 hexadecimal characters as [rows, 2] integers, which order as the strings do."""
    data, offsets = utf8(column)
    packed = binascii.unhexlify(data[offsets[0] : offsets[-1]].tobytes())
    return np.frombuffer(packed, ">u8").reshape(-1, 2).astype(np.uint64)


def id_strings(high: npt.NDArray[np.uint64], low: npt.NDArray[np.uint64]) -> pyarrow.Array:
    """The inverse of `ids`."""
    packed = np.stack([high, low], axis=1).astype(">u8").tobytes().hex().encode()
    offsets = np.arange(len(high) + 1, dtype=np.int32) * 32
    buffers = [None, pyarrow.py_buffer(offsets), pyarrow.py_buffer(packed)]
    return pyarrow.Array.from_buffers(pyarrow.string(), len(high), buffers)
