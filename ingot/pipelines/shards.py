"""Token shards: raw little-endian integers, of which any part can be read alone and is verified all the same.

The SHA-256 of a file says nothing of a part of it. So beside each shard lie the digests of its blocks of
64 KiB, below `blocks/` under the shard's own name: of each block the first 16 bytes of its SHA-256. The
manifest vouches for them as for every file, and no token is taken from a block that has another digest."""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np

from ingot.pipelines.artifact import Artifact, File, put_file
from ingot.pipelines.store import Store

BLOCK_BYTES = 2**16
DIGEST_BYTES = 16
READS_AT_ONCE = 16
SPANS_AT_ONCE = 512  # whose blocks are held together, beside the cache

Block = np.ndarray[Any, np.dtype[np.unsignedinteger[Any]]]


class Span(NamedTuple):
    """The tokens [start, stop) of a shard."""

    shard: str
    start: int
    stop: int


def put_shard(store: Store, tokens: np.ndarray) -> tuple[File, File]:
    """Stores a shard; the file of its tokens, and that of its blocks' digests."""
    data = tokens.tobytes()
    digests = b"".join(
        _digest(data[start : start + BLOCK_BYTES]) for start in range(0, len(data), BLOCK_BYTES)
    )
    return put_file(store, data, tokens=len(tokens)), put_file(store, digests)


class ShardReader:
    """Reads parts of the shards of a tokens artifact, from a folder or by ranged reads, verified.

    Blocks are read several at once, and each once however many ask for it at a time. They are kept as long
    as all together are at most `cache_bytes`; those go first that were used least recently. Kept besides are
    the digests of shards that were read: 256 MB for a terabyte. Threads may share a reader."""

    def __init__(self, artifact: Artifact, cache_bytes: int) -> None:
        self.artifact, self.cache_bytes = artifact, cache_bytes
        self.meta = artifact.json("meta.json")
        self.dtype = np.dtype(self.meta["dtype"]).newbyteorder("<")
        self.cached_bytes = 0
        self._blocks: OrderedDict[tuple[str, int], Future[Block]] = OrderedDict()
        self._digests: dict[str, bytes] = {}
        self._lock = threading.Lock()
        self._pool = ThreadPoolExecutor(READS_AT_ONCE, thread_name_prefix="blocks")

    def read(self, spans: Sequence[Span]) -> list[np.ndarray]:
        """The tokens of each span, in the shards' own type. Raises Damaged."""
        read = []
        for start in range(0, len(spans), SPANS_AT_ONCE):
            group = spans[start : start + SPANS_AT_ONCE]
            wanted = dict.fromkeys(key for span in group for key in self._keys(span))
            blocks = {key: self._block(key) for key in wanted}
            read += [self._cut(span, [blocks[key].result() for key in self._keys(span)]) for span in group]
        return read

    @property
    def _tokens_per_block(self) -> int:
        return BLOCK_BYTES // self.dtype.itemsize

    def _keys(self, span: Span) -> list[tuple[str, int]]:
        first, last = span.start // self._tokens_per_block, -(-span.stop // self._tokens_per_block)
        return [(span.shard, number) for number in range(first, last)]

    def _cut(self, span: Span, blocks: Sequence[Block]) -> np.ndarray:
        first = span.start % self._tokens_per_block
        whole = blocks[0] if len(blocks) == 1 else np.concatenate([*blocks, np.zeros(0, self.dtype)])
        return whole[first : first + span.stop - span.start]

    def _block(self, key: tuple[str, int]) -> Future[Block]:
        with self._lock:
            if key in self._blocks:
                self._blocks.move_to_end(key)
                return self._blocks[key]
            future = self._blocks[key] = self._pool.submit(self._fetch, key)
            self.cached_bytes += BLOCK_BYTES
            while self.cached_bytes > self.cache_bytes:
                self._blocks.popitem(last=False)
                self.cached_bytes -= BLOCK_BYTES
        return future

    def _fetch(self, key: tuple[str, int]) -> Block:
        name, number = key
        try:
            if name not in self._digests:
                self._digests[name] = self.artifact.read(f"blocks/{name}")
            data = self.artifact.read_range(name, number * BLOCK_BYTES, BLOCK_BYTES)
            if _digest(data) != self._digests[name][number * DIGEST_BYTES : (number + 1) * DIGEST_BYTES]:
                raise self.artifact.damaged(name, number * BLOCK_BYTES)
        except BaseException:
            with self._lock:  # who asks again reads again
                if self._blocks.pop(key, None) is not None:
                    self.cached_bytes -= BLOCK_BYTES
            raise
        return np.frombuffer(data, self.dtype)


def _digest(block: bytes) -> bytes:
    return hashlib.sha256(block).digest()[:DIGEST_BYTES]
