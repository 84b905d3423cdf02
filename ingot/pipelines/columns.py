"""Columns of strings as numpy arrays over Arrow's own buffers."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pyarrow


def utf8(column: pyarrow.ChunkedArray) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    """A column of strings as its bytes and the offsets [rows + 1] of its rows in them."""
    if len(column) == 0:
        return np.zeros(0, np.uint8), np.zeros(1, np.int64)
    array = pyarrow.concat_arrays(column.cast(pyarrow.large_string()).chunks)
    _, offsets, data = array.buffers()
    bounds = np.frombuffer(offsets, np.int64, len(array) + 1, array.offset * 8)
    return np.frombuffer(data or b"", np.uint8), bounds
