"""The steps of dedup one by one, without a cluster."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ingot.pipelines import artifact
from ingot.pipelines.artifact import Damaged, put_file
from ingot.pipelines.dedup import candidates, exchange, ship
from ingot.pipelines.dedup.candidates import REPRESENTATIVES, find_candidates
from ingot.pipelines.dedup.exchange import (
    CELL,
    GAP_BYTES,
    Column,
    hash_bounds,
    location_bounds,
    look_up,
    merge_runs,
    partitions_of,
    put_index,
    put_rows,
    put_run,
    put_segments,
    read_partition,
    read_range,
    read_rows,
    read_slices,
)
from ingot.pipelines.dedup.rows import ASK, BAND, DOCUMENT, EDGE, KEY, PAIR, Rows
from ingot.pipelines.dedup.ship import ship_shingles
from ingot.pipelines.dedup.verify import verify_pairs
from ingot.pipelines.store import LocalStore

ONE = {"cuts": [[1, 1]]}  # one documents file, one partition


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    return LocalStore(str(tmp_path / "store"))


def rows(dtype: np.dtype[np.void], **columns: Any) -> Rows:
    made = np.zeros(len(next(iter(columns.values()))), dtype)
    for name, values in columns.items():
        made[name] = values
    return made


def runs_of_hashes(store: LocalStore, partitions: int) -> tuple[list[Any], list[int]]:
    draw = np.random.Generator(np.random.PCG64(1))
    parts = [np.sort(draw.integers(0, 2**64, count, np.uint64)) for count in (0, 1, 500, 3, 40)]
    made = [put_run(store, rows(BAND, hash=part), "hash", hash_bounds(partitions)) for part in parts]
    return made, sorted(np.concatenate(parts).tolist())


@pytest.mark.parametrize("small", [0, 10**6])
def test_partitions_of_all_runs_together_are_all_rows(
    store: LocalStore, monkeypatch: pytest.MonkeyPatch, small: int
) -> None:
    monkeypatch.setattr(exchange, "SMALL_RUN", small)
    runs, values = runs_of_hashes(store, 7)
    read = [read_partition(store, runs, part, BAND)["hash"] for part in range(7)]
    assert sorted(np.concatenate(read).tolist()) == values
    for part, own in enumerate(read):
        assert set(partitions_of(hash_bounds(7), own).tolist()) <= {part}


def test_merged_runs_hold_the_same_partitions(store: LocalStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exchange, "FAN_IN", 2)
    monkeypatch.setattr(exchange, "MERGED_BYTES", 3000)
    runs, _ = runs_of_hashes(store, 7)
    columns = Column(0, 7, runs).cut()
    assert [columns[0].first, columns[-1].end] == [0, 7]
    assert len(columns) > 1
    for column in columns:
        groups = column.groups()
        assert max(map(len, groups)) == 2
        bodies = [{"runs": group, "first": column.first, "end": column.end} for group in groups]
        merged = [merge_runs(store, body)["run"] for body in bodies]
        for part in range(column.first, column.end):
            before, after = (read_partition(store, each, part, BAND)["hash"] for each in (runs, merged))
            assert sorted(before.tolist()) == sorted(after.tolist())


def test_the_documents_files_of_each_snapshot_fall_into_partitions_in_order() -> None:
    bounds = location_bounds([(8, 3), (2, 1), (3, 3)])
    parts = partitions_of(bounds, np.array([file << 32 | 5 for file in range(13)], np.uint64)).tolist()
    assert parts == sorted(parts)
    assert parts[8:] == [3, 3, 4, 5, 6]
    assert set(parts[:8]) == {0, 1, 2}


def test_an_index_gives_the_rows_that_are_asked_for_and_reads_few_others(
    store: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = np.sort(np.random.Generator(np.random.PCG64(5)).integers(0, 2**64, 40 * CELL + 7, np.uint64))
    values[3 * CELL - 2 : 3 * CELL + 3] = values[3 * CELL]  # equal ones on both sides of a fence
    table = rows(KEY, key_high=values, location=range(len(values)))
    indexes = [put_index(store, part, "key_high") for part in (table[:20_000], table[:0], table[20_000:])]
    wanted = np.unique(np.concatenate([values[[0, 3 * CELL, 25_000, -1]], values[[0, 77]] + 1]))
    read = []
    actual = exchange.read_range
    monkeypatch.setattr(exchange, "read_range", lambda *words: read.append(words[3]) or actual(*words))
    found = look_up(store, indexes, "key_high", wanted, KEY)
    expected = table[np.isin(values, wanted)]
    assert found.tolist() == expected.tolist()
    assert len(found) == 8
    assert sum(read) < table.nbytes / 4
    assert len(look_up(store, indexes, "key_high", wanted[:0], KEY)) == 0


def test_slices_are_read_whole_across_pieces(store: LocalStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(artifact, "PIECE_BYTES", 1000)
    monkeypatch.setattr(exchange, "GAP_BYTES", 50)
    data = np.random.Generator(np.random.PCG64(2)).bytes(10_500)
    file = put_file(store, data)
    assert len(file.pieces) == 11
    assert read_range(store, file, 990, 2020, "a file") == data[990:3010]
    assert read_range(store, file, 10_400, 5000, "a file") == data[10_400:]
    cuts = np.sort(np.random.Generator(np.random.PCG64(3)).choice(10_500, 200, replace=False))
    starts, lengths = cuts[0::2], np.diff(cuts)[0::2]
    expected = b"".join(data[start : start + length] for start, length in zip(starts, lengths, strict=True))
    assert read_slices(store, file, starts, lengths) == expected
    assert read_slices(store, file, starts[:0], lengths[:0]) == b""


def test_rows_that_are_missing_are_not_passed_over(store: LocalStore) -> None:
    file = put_file(store, bytes(1000))
    place = Path(store.uri, file.pieces[0].key)
    place.write_bytes(bytes(900))
    for damage in ("cut", "gone"):
        with pytest.raises(Damaged, match=r"a file of rows is damaged: .* is missing or cut short; restore"):
            read_slices(store, file, np.array([0, 850]), np.array([10, 100]))
        if damage == "cut":
            place.unlink()


def test_near_slices_share_a_read(store: LocalStore, monkeypatch: pytest.MonkeyPatch) -> None:
    file = put_file(store, bytes(10 * GAP_BYTES))
    reads = []
    monkeypatch.setattr(exchange, "read_range", lambda *words: reads.append(words[2:4]) or bytes(words[3]))
    starts = np.array([0, 1000, 2 * GAP_BYTES, 3 * GAP_BYTES, 8 * GAP_BYTES])
    read_slices(store, file, starts, np.full(5, 100))
    assert sorted(reads) == [(0, 1100), (2 * GAP_BYTES, GAP_BYTES + 100), (8 * GAP_BYTES, 100)]


def candidates_of(store: LocalStore, entries: Rows, **body: Any) -> tuple[Rows, Rows, dict[str, Any]]:
    """(pairs, asks, the record)"""
    run = put_run(store, entries, "hash", hash_bounds(1))
    record = find_candidates(store, {"runs": [run], "indexes": [], "partition": 0, **ONE, **body})
    pairs = [read_partition(store, [run], 0, PAIR) for run in record["pairs"]]
    asks = [read_partition(store, [run], 0, ASK) for run in record["asks"]]
    return np.concatenate([np.empty(0, PAIR), *pairs]), np.concatenate([np.empty(0, ASK), *asks]), record


def test_all_pairs_of_a_small_bucket_are_candidates_once_with_the_bands_they_share(store: LocalStore) -> None:
    entries = rows(
        BAND,
        hash=[64 + 5, 64 + 5, 64 + 5, 128 + 9, 128 + 9, 128 + 9, 7],  # the last six bits are the band
        rank=[9, 8, 9, 9, 8, 9, 1],
        id_high=[2, 1, 1, 2, 1, 1, 0],
        location=[0, 1, 2, 0, 1, 2, 3],
    )
    pairs, asks, record = candidates_of(store, entries[np.argsort(entries["hash"])])
    # by rank, then the least id: 1, 2, 0
    both = 1 << 5 | 1 << 9
    assert pairs.tolist() == [(0, 1, both), (0, 2, both), (2, 1, both)]
    assert asks.tolist() == [(1, 0), (2, 0)]
    assert record["asked"] == [0]


def test_pairs_of_a_large_bucket_grow_with_its_size_alone(
    store: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(candidates, "BLOCK_PAIRS", 20_000)
    size = 5_000
    places = np.random.Generator(np.random.PCG64(4)).permutation(size)
    entries = rows(BAND, hash=np.full(size, 1), rank=size - places, id_high=places, location=places)
    pairs, _, record = candidates_of(store, entries)
    assert len(np.unique(pairs)) == len(pairs)
    assert len(pairs) == REPRESENTATIVES * size - REPRESENTATIVES * (REPRESENTATIVES + 1) // 2
    # by rank the last place comes first
    assert pairs["better"].min() == size - REPRESENTATIVES
    assert np.all(pairs["worse"] < pairs["better"])
    assert len(np.unique(pairs["worse"])) == size - 1
    assert record["index"]["rows"] == REPRESENTATIVES


@pytest.mark.long
def test_a_bucket_of_a_million_is_linear_in_pairs_and_takes_less_than_a_gigabyte(tmp_path: Path) -> None:
    script, members = str(Path(__file__).with_name("dedup_bucket.py")), 1_000_000
    command = [sys.executable, script, str(tmp_path), str(members)]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["pairs"] == REPRESENTATIVES * members - REPRESENTATIVES * (REPRESENTATIVES + 1) // 2
    assert found["peak"] < 1_000_000_000


def test_a_bucket_of_an_earlier_snapshot_gives_representatives_and_no_pairs_of_its_own(
    store: LocalStore,
) -> None:
    size = REPRESENTATIVES - 2
    earlier = rows(BAND, hash=np.full(size, 64), rank=range(size), location=range(size))
    new = rows(BAND, hash=np.full(5, 64), rank=1000 + np.arange(5), location=100 + np.arange(5))
    index = put_index(store, earlier, "hash")
    pairs, _, record = candidates_of(store, new, indexes=[index])
    assert set(pairs["worse"].tolist()) == set(range(100, 105))
    first, last = (pairs[pairs["worse"] == place]["better"].tolist() for place in (100, 104))
    assert first == list(range(size))
    assert last == [*range(size), 100, 101]
    assert read_rows(store, record["index"]["file"], np.dtype("<u8"))[3] == 100
    assert record["index"]["rows"] == 2


def signed_documents(store: LocalStore, sets: list[list[int]]) -> dict[str, Any]:
    """One file's record, as the sign step leaves it, as the steps after it take it."""
    sizes = np.array([len(values) for values in sets])
    documents = rows(
        DOCUMENT,
        id_low=range(len(sets)),
        id_high=range(100, 100 + len(sets)),
        rank=1000 - sizes * 10,
        shingles=sizes,
        first_shingle=np.cumsum(sizes) - sizes,
    )
    flat = np.array([value for values in sets for value in sorted(values)], np.uint64)
    record = {"documents": put_rows(store, documents), "shingles": put_rows(store, flat)}
    return {"first": 0, "signed": [record], "partition": 0, **ONE}


@pytest.mark.parametrize("block", [1, 40, 10**6])
def test_a_pair_stays_if_its_jaccard_similarity_reaches_the_threshold(
    store: LocalStore, monkeypatch: pytest.MonkeyPatch, block: int
) -> None:
    monkeypatch.setattr(ship, "BLOCK_SHINGLES", block)
    sets = [
        list(range(10)),
        list(range(1, 10)),  # 9/10 with the first
        list(range(2, 10)),  # 8/10: the threshold itself; 8/9 with the second
        list(range(7)),  # 7/10
        list(range(100, 110)),
        list(range(1, 11)),  # 9/11 with the first
        [],
    ]
    worse, better = [1, 2, 2, 2, 3, 4, 5, 6], [0, 0, 0, 1, 0, 0, 0, 0]
    pairs = rows(PAIR, worse=worse, better=better, bands=1 << np.arange(8))
    run = put_run(store, pairs, "worse", location_bounds(**ONE))
    asks = put_run(store, rows(ASK, better=[0, 1]), "better", location_bounds(**ONE))
    signed = signed_documents(store, sets)
    shipped = ship_shingles(store, {**signed, "asks": [asks, asks]})
    assert len(shipped["sets"]) == (2 if block == 1 else 1)
    record = verify_pairs(
        store, {**signed, "pairs": [run, run], "sets": shipped["sets"], "threshold": 0.8, "signatures": 0}
    )
    edges = read_rows(store, record["edges"], EDGE)
    found = edges[["worse", "better", "similarity", "bands"]].tolist()
    assert found == [(1, 0, 0.9, 1), (2, 0, 0.8, 2 | 4), (2, 1, 8 / 9, 8), (5, 0, 9 / 11, 64)]
    assert edges[["rank", "better_rank", "better_high", "better_low"]].tolist()[2] == (920, 910, 101, 1)
    assert read_partition(store, [record["asks"]], 0, ASK).tolist() == [(0, 0), (1, 0)]
    assert (record["pairs"], record["verified"]) == (7, 4)


def test_what_is_sent_goes_to_each_partition_that_asks_once(store: LocalStore) -> None:
    signed = signed_documents(store, [[1, 2, 3], [4, 5]])
    body = {**signed, "cuts": [[3, 3]]}
    asks = rows(ASK, better=[0, 1, 1], partition=[2, 0, 2])
    run = put_run(store, asks, "better", location_bounds(body["cuts"]))
    [sets] = ship_shingles(store, {**body, "asks": [run, run]})["sets"]
    sent = [read_partition(store, [sets], part, np.dtype("<u8")).tolist() for part in range(3)]
    first, second = [0, 970, 100, 0, 3, 1, 2, 3], [1, 980, 101, 1, 2, 4, 5]
    assert sent == [second, [], first + second]
    assert put_segments(store, b"", np.zeros(3, np.int64))["bytes"] == 0
