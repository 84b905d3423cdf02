"""The steps of dedup one by one, without a cluster."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ingot.pipelines import artifact
from ingot.pipelines.artifact import Damaged, File, put_file
from ingot.pipelines.dedup import candidates, exchange, verify
from ingot.pipelines.dedup.candidates import REPRESENTATIVES, find_candidates
from ingot.pipelines.dedup.exchange import (
    GAP_BYTES,
    hash_bounds,
    location_bounds,
    partition_of,
    put_catalogue,
    put_rows,
    put_run,
    read_catalogue,
    read_partition,
    read_range,
    read_rows,
    read_slices,
)
from ingot.pipelines.dedup.resolve import resolve_pairs
from ingot.pipelines.dedup.rows import BAND, DOCUMENT, EDGE, GAIN, NODE, PAIR, REMOVAL, Rows
from ingot.pipelines.store import LocalStore


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    return LocalStore(str(tmp_path / "store"))


def rows(dtype: np.dtype[np.void], **columns: Any) -> Rows:
    made = np.zeros(len(next(iter(columns.values()))), dtype)
    for name, values in columns.items():
        made[name] = values
    return made


def test_partitions_of_all_runs_together_are_all_rows(store: LocalStore) -> None:
    draw = np.random.Generator(np.random.PCG64(1))
    bounds = hash_bounds(7)
    parts = [np.sort(draw.integers(0, 2**64, count, np.uint64)) for count in (0, 1, 500, 3)]
    made = [put_run(store, rows(BAND, hash=part), "hash", bounds) for part in parts]
    runs = read_catalogue(store, put_catalogue(store, made))
    read = [read_partition(store, runs, part, BAND)["hash"] for part in range(7)]
    assert sorted(np.concatenate(read).tolist()) == sorted(np.concatenate(parts).tolist())
    for part, values in enumerate(read):
        assert all(partition_of(bounds, value) == part for value in values.tolist())


def test_the_documents_files_fall_into_partitions_in_order() -> None:
    bounds = location_bounds(3, 8)
    parts = [partition_of(bounds, file << 32 | 5) for file in range(8)]
    assert parts == sorted(parts)
    assert set(parts) == {0, 1, 2}


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


def candidates_of(store: LocalStore, entries: Rows) -> Rows:
    run = put_run(store, entries, "hash", hash_bounds(1))
    runs = put_catalogue(store, [run])
    record = find_candidates(store, {"runs": runs, "partition": 0, "files": 1, "location_partitions": 1})
    return np.concatenate([read_rows(store, run["file"], PAIR) for run in record["runs"]])


def test_all_pairs_of_a_small_bucket_are_candidates_once_whatever_bands_they_share(store: LocalStore) -> None:
    entries = rows(
        BAND,
        hash=[5, 5, 5, 9, 9, 9, 7],
        length=[10, 30, 10, 10, 30, 10, 99],
        id_high=[2, 1, 1, 2, 1, 1, 0],
        location=[0, 1, 2, 0, 1, 2, 3],
    )
    pairs = candidates_of(store, entries[np.argsort(entries["hash"])])
    # longest first, then the least id: 1, 2, 0
    assert pairs.tolist() == [(0, 1), (0, 2), (2, 1)]


def test_pairs_of_a_large_bucket_grow_with_its_size_alone(
    store: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(candidates, "BLOCK_PAIRS", 20_000)
    size = 5_000
    places = np.random.Generator(np.random.PCG64(4)).permutation(size)
    entries = rows(BAND, hash=np.full(size, 1), length=places + 1, id_high=places, location=places)
    pairs = candidates_of(store, entries)
    assert len(np.unique(pairs)) == len(pairs)
    assert len(pairs) == REPRESENTATIVES * size - REPRESENTATIVES * (REPRESENTATIVES + 1) // 2
    # by rank the last place comes first
    assert pairs["better"].min() == size - REPRESENTATIVES
    assert np.all(pairs["worse"] < pairs["better"])
    assert len(np.unique(pairs["worse"])) == size - 1


def signed_documents(store: LocalStore, sets: list[list[int]]) -> dict[str, Any]:
    """The catalogue of one file's record, as the sign step leaves it."""
    sizes = np.array([len(values) for values in sets])
    documents = rows(
        DOCUMENT,
        id_low=range(len(sets)),
        length=sizes * 10,
        shingles=sizes,
        first_shingle=np.cumsum(sizes) - sizes,
        copies=np.ones(len(sets)),
    )
    flat = np.array([value for values in sets for value in sorted(values)], np.uint64)
    return put_catalogue(
        store, [{"documents": put_rows(store, documents), "shingles": put_rows(store, flat)}]
    )


@pytest.mark.parametrize("block", [1, 40, 10**6])
def test_a_pair_stays_if_its_jaccard_similarity_reaches_the_threshold(
    store: LocalStore, monkeypatch: pytest.MonkeyPatch, block: int
) -> None:
    monkeypatch.setattr(verify, "BLOCK_SHINGLES", block)
    sets = [
        list(range(10)),
        list(range(1, 10)),  # 9/10 with the first
        list(range(2, 10)),  # 8/10: the threshold itself; 8/9 with the second
        list(range(7)),  # 7/10
        list(range(100, 110)),
        list(range(1, 11)),  # 9/11 with the first
    ]
    pairs = rows(PAIR, worse=[1, 2, 2, 2, 3, 4, 5], better=[0, 0, 0, 1, 0, 0, 0])
    run = put_run(store, pairs, "worse", location_bounds(1, 1))
    body = {
        "pairs": put_catalogue(store, [run, run]),
        "signed": signed_documents(store, sets),
        "partition": 0,
    }
    record = verify.verify_pairs(store, {**body, "threshold": 0.8})
    edges = read_rows(store, record["edges"], EDGE)
    assert edges.tolist() == [(1, 0, 0.9), (2, 0, 0.8), (2, 1, 8 / 9), (5, 0, 9 / 11)]
    assert read_rows(store, record["nodes"], NODE)["location"].tolist() == [0, 1, 2, 5]
    assert (record["pairs"], record["verified"]) == (6, 4)


def resolved(store: LocalStore, nodes: Rows, edges: Rows) -> dict[str, Any]:
    half = len(edges) // 2
    parts = [
        {"edges": put_rows(store, part), "nodes": put_rows(store, nodes)}
        for part in (edges[half:], edges[:half])
    ]
    body = {"verified": put_catalogue(store, parts), "files": 1, "location_partitions": 1}
    return resolve_pairs(store, body)


def test_no_chain_removes_what_is_not_near_one_that_stays(store: LocalStore) -> None:
    # by rank 30, 20, 10, 0: 20 goes for 30, so 10 stays although it is near 20, and 0 goes for 10, not 20
    nodes = rows(
        NODE, location=[0, 10, 20, 30], length=[7, 8, 8, 9], id_high=[0, 5, 4, 0], copies=[1, 1, 3, 1]
    )
    edges = rows(EDGE, worse=[0, 0, 10, 20], better=[10, 20, 20, 30], similarity=[0.81, 0.95, 0.9, 0.85])
    record = resolved(store, nodes, edges)
    removals = read_rows(store, record["removals"]["file"], REMOVAL)
    assert removals[["location", "witness", "similarity"]].tolist() == [(0, 10, 0.81), (20, 30, 0.85)]
    gains = read_rows(store, record["gains"]["file"], GAIN)
    assert gains.tolist() == [(10, 1), (30, 3)]
    assert read_rows(store, record["moved"], REMOVAL)["location"].tolist() == [20]


def test_the_witness_is_the_best_ranked_of_those_that_stay(store: LocalStore) -> None:
    nodes = rows(NODE, location=[0, 1, 2], length=[5, 5, 5], id_high=[3, 2, 1], copies=[1, 1, 1])
    edges = rows(EDGE, worse=[0, 0], better=[1, 2], similarity=[0.99, 0.8])
    removals = read_rows(store, resolved(store, nodes, edges)["removals"]["file"], REMOVAL)
    assert removals[["location", "witness", "similarity"]].tolist() == [(0, 2, 0.8)]


def test_nothing_to_resolve_is_no_fault(store: LocalStore) -> None:
    record = resolved(store, np.zeros(0, NODE), np.zeros(0, EDGE))
    assert File.from_json(record["removals"]["file"]).bytes == 0
    assert record["examples"] == record["shown"] == []
