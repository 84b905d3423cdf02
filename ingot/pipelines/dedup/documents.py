"""Documents files as numpy arrays over Arrow's own buffers, and ids as pairs of integers."""

from __future__ import annotations

import binascii
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow

from ingot.pipelines.artifact import File, read_table
from ingot.pipelines.columns import utf8
from ingot.pipelines.store import Store


def read_columns(store: Store, entry: Mapping[str, Any], columns: list[str]) -> pyarrow.Table:
    return read_table(store, File.from_json(entry), "a documents file", columns)


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
