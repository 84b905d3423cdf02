"""Any part of a shard is read as it was stored, verified, whatever is kept and whoever asks."""

from __future__ import annotations

import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from made_tokens import put_tokens

from ingot.pipelines.artifact import Artifact, Damaged
from ingot.pipelines.shards import BLOCK_BYTES, ShardReader, Span
from ingot.pipelines.store import LocalStore, Store, open_store

if TYPE_CHECKING:
    from conftest import S3

BLOCK = BLOCK_BYTES // 4  # tokens
LENGTHS = (5 * BLOCK + 17, 0, 3 * BLOCK, 11)
SHARDS = [np.random.default_rng(n).integers(0, 70_000, size) for n, size in enumerate(LENGTHS)]
SPANS = [
    Span("train/00000.bin", 0, 1),
    Span("train/00000.bin", BLOCK - 1, BLOCK + 1),
    Span("train/00000.bin", 10, 5 * BLOCK + 17),
    Span("train/00002.bin", BLOCK, 3 * BLOCK),
    Span("train/00003.bin", 0, 11),
    Span("train/00003.bin", 4, 4),
]


class Counting(LocalStore):
    """Counts the reads of each part of `shards`, the keys of objects; they wait for `gate`."""

    def __init__(self, uri: str) -> None:
        super().__init__(uri)
        self.shards: set[str] = set()
        self.reads: Counter[tuple[str, int]] = Counter()
        self.gate = threading.Event()
        self.gate.set()

    def read(self, key: str, start: int = 0, length: int | None = None) -> bytes:
        if key in self.shards:
            self.reads[key, start] += 1
            assert self.gate.wait(30)
        return super().read(key, start, length)


@pytest.fixture
def store(tmp_path: Path) -> Counting:
    return Counting(str(tmp_path))


@pytest.fixture
def tokens(store: Counting) -> Artifact:
    artifact = made(store)
    shards = [artifact.files[name] for name in artifact.names("train/")]
    store.shards = {piece.key for file in shards for piece in file.pieces}
    return artifact


def made(store: Store) -> Artifact:
    return put_tokens(store, SHARDS, SHARDS[3], dtype="<u4")


def expected(span: Span) -> list[int]:
    found: list[int] = SHARDS[int(span.shard[6:11])][span.start : span.stop].tolist()
    return found


@pytest.mark.parametrize("cache_bytes", [0, 3 * BLOCK_BYTES, 10**9])
def test_a_part_is_what_was_stored_however_much_is_kept(tokens: Artifact, cache_bytes: int) -> None:
    reader = ShardReader(tokens, cache_bytes)
    for _ in range(2):
        assert [found.tolist() for found in reader.read(SPANS)] == [expected(span) for span in SPANS]


def test_parts_are_read_from_s3(s3: S3) -> None:
    reader = ShardReader(made(open_store(s3.uri("shards"))), cache_bytes=10**9)
    assert [found.tolist() for found in reader.read(SPANS)] == [expected(span) for span in SPANS]


def test_of_more_than_fits_the_least_recently_used_goes(tokens: Artifact, store: Counting) -> None:
    reader = ShardReader(tokens, cache_bytes=2 * BLOCK_BYTES)

    def reads_of(number: int) -> int:
        store.reads.clear()
        reader.read([Span("train/00000.bin", number * BLOCK, number * BLOCK + 1)])
        return store.reads.total()

    assert [reads_of(number) for number in (0, 1, 0, 2, 0, 1)] == [1, 1, 0, 1, 0, 1]
    assert reader.cached_bytes == 2 * BLOCK_BYTES


def test_a_block_that_several_want_at_once_is_read_once(tokens: Artifact, store: Counting) -> None:
    reader = ShardReader(tokens, cache_bytes=10**9)
    store.gate.clear()
    span = Span("train/00002.bin", 1, BLOCK + 1)  # two blocks
    with ThreadPoolExecutor(6) as pool:
        asked = [pool.submit(reader.read, [span, span]) for _ in range(6)]
        while store.reads.total() < 2:  # both are under way at the same time
            threading.Event().wait(0.01)
        store.gate.set()
        assert all(future.result()[1].tolist() == expected(span) for future in asked)
    assert sorted(store.reads.values()) == [1, 1]


@pytest.mark.parametrize("kind", ["a folder", "s3"])
def test_an_altered_block_is_refused_and_its_neighbours_are_not(
    kind: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    uri = str(tmp_path) if kind == "a folder" else request.getfixturevalue("s3").uri("altered")
    store = open_store(uri)
    artifact = made(store)
    [piece] = artifact.files["train/00002.bin"].pieces
    data = bytearray(store.read(piece.key))
    data[BLOCK_BYTES + 5] ^= 1
    store.delete(piece.key)
    store.create(piece.key, bytes(data))
    reader = ShardReader(artifact, cache_bytes=10**9)
    whole = [Span("train/00002.bin", 0, BLOCK), Span("train/00002.bin", 2 * BLOCK, 3 * BLOCK)]
    assert [found.tolist() for found in reader.read(whole)] == [expected(span) for span in whole]
    mend = rf"train/00002\.bin is damaged: its object {piece.key} was altered; restore the object, or delete"
    for _ in range(2):  # it is not kept either
        with pytest.raises(Damaged, match=mend):
            reader.read([Span("train/00002.bin", BLOCK - 1, BLOCK + 1)])


def test_a_missing_shard_is_refused(tokens: Artifact, store: Counting) -> None:
    [piece] = tokens.files["train/00002.bin"].pieces
    store.delete(piece.key)
    with pytest.raises(Damaged, match=r"train/00002\.bin is damaged: its object .* is missing or cut short"):
        ShardReader(tokens, cache_bytes=0).read([Span("train/00002.bin", 0, 1)])
