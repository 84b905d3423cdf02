"""Rows of coming steps, fetched while earlier steps run."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from ingot.pipelines.training.dataset import Share

THREADS = 4  # shares fetched at once
AHEAD_BYTES = 256_000_000  # of the shares that are kept ready, about


class ReadAhead:
    """The shares of the steps [first, end), in their order. `read(step)` fetches one and is called by several
    threads; at most `depth` steps are ahead of the one that was taken last, fewer where their tensors would
    be more than AHEAD_BYTES."""

    def __init__(self, read: Callable[[int], Share], first: int, end: int, depth: int) -> None:
        self._read, self._next, self._end, self._depth = read, first, end, depth
        self._shares: deque[Future[Share]] = deque()
        self._pool = ThreadPoolExecutor(min(THREADS, depth), thread_name_prefix="rows")
        self._fill(depth)

    def take(self) -> Share:
        """The next step's share; waits until it is there. Raises what fetching it ran into."""
        share = self._shares.popleft().result()
        self._fill(max(1, min(self._depth, AHEAD_BYTES // max(1, share.bytes))))
        return share

    def __enter__(self) -> ReadAhead:
        return self

    def __exit__(self, *_: Any) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _fill(self, depth: int) -> None:
        while self._next < self._end and len(self._shares) < depth:
            self._shares.append(self._pool.submit(self._read, self._next))
            self._next += 1
