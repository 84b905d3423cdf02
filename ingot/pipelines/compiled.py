"""Numba, as every kernel here uses it: compiled on first use, without the GIL, kept in a cache on disk.

Numba looks for a place for the cache in this order: `NUMBA_CACHE_DIR`; `__pycache__` beside the source; the
user's cache folder. All worker processes of a machine share it, so that one compilation serves them all.
Where none can be written (a read-only package and no home), each process compiles for itself: 7 s."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from numba import njit

Function = TypeVar("Function", bound=Callable[..., object])


def compiled(function: Function) -> Function:
    """The function as machine code, compiled for the types of its first call."""
    try:
        kernel: Function = njit(cache=True, nogil=True)(function)
    except RuntimeError:  # no place for the cache
        kernel = njit(nogil=True)(function)
    return kernel
