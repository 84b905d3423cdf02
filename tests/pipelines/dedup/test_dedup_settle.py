"""Settling and joining components: in one task, in rounds, and by the definition."""

from __future__ import annotations

import random
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dedup_workspaces import InProcess, Quiet

from ingot.pipelines.dedup.components import join_components
from ingot.pipelines.dedup.exchange import hash_bounds, location_bounds, put_rows, put_run, read_partition
from ingot.pipelines.dedup.rows import ASK, BAND, DOCUMENT, EDGE, REMOVAL
from ingot.pipelines.dedup.settle import settle_edges
from ingot.pipelines.dedup.steps import Steps
from ingot.pipelines.store import LocalStore, Store

FILES = 5

Pairs = Mapping[int, Mapping[int, float]]  # worse → better → similarity


@pytest.fixture
def steps(tmp_path: Path) -> Steps:
    store = LocalStore(str(tmp_path))
    return Steps(InProcess(store, "artifacts/test", Quiet()), 3, [(FILES, FILES)])


def place(document: int) -> int:
    """The document's location: they lie about in all files."""
    return document * 7 % FILES << 32 | document


def verified(store: Store, pairs: Pairs) -> list[dict[str, Any]]:
    """verify_pairs' records; document n is of rank n."""
    bounds = location_bounds([(FILES, FILES)])
    records = []
    for part in range(FILES):
        own = [
            (place(worse), place(better), similarity, 1, worse, 0, better, 1000 + better, 2000 + better, 0)
            for worse, others in pairs.items()
            for better, similarity in others.items()
            if place(worse) >> 32 == part
        ]
        edges = np.array(sorted(own, key=lambda edge: (edge[0], edge[6])), EDGE)
        asks = np.array(sorted({(edge[1], part) for edge in own}), ASK)
        asks_run = put_run(store, asks, "better", bounds)
        records.append({"edges": put_rows(store, edges), "asks": asks_run, "verified": len(edges)})
    return records


def removals(store: Store, records: Sequence[Mapping[str, Any]]) -> dict[int, tuple[int, float]]:
    """Document → (witness, similarity)."""
    runs = [record["removals"] for record in records]
    rows = np.concatenate([read_partition(store, runs, part, REMOVAL) for part in range(FILES)])
    number = np.uint64(0xFFFFFFFF)
    found = zip((rows["location"] & number).tolist(), (rows["witness"] & number).tolist(), strict=True)
    both = list(zip(found, rows["similarity"].tolist(), strict=True))
    assert len({document for (document, _), _ in both}) == len(both)
    assert rows["witness_high"].tolist() == [1000 + witness for (_, witness), _ in both]
    return {document: (witness, similarity) for (document, witness), similarity in both}


def by_definition(pairs: Pairs) -> dict[int, tuple[int, float]]:
    gone: dict[int, tuple[int, float]] = {}
    for worse in sorted(pairs):
        for better in sorted(pairs[worse]):
            if better not in gone:
                gone[worse] = (better, pairs[worse][better])
                break
    return gone


def graph(seed: int) -> Pairs:
    """Chains, stars and random pairs of 300 documents."""
    draw = random.Random(seed)
    pairs: dict[int, dict[int, float]] = {}

    def add(one: int, other: int) -> None:
        if one != other:
            pairs.setdefault(max(one, other), {})[min(one, other)] = draw.uniform(0.8, 1)

    for link in range(100):
        add(link, link + 1)  # every second goes, and each waits for the one before
    for _ in range(150):
        add(draw.randrange(100, 300), draw.randrange(100, 300))
    for leaf in range(200, 240):
        add(leaf, 150)
    return pairs


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("at_once", [10**6, 60, 0])
def test_what_goes_is_what_the_definition_says_however_it_is_found(
    steps: Steps, monkeypatch: pytest.MonkeyPatch, at_once: int, seed: int
) -> None:
    monkeypatch.setattr(sys.modules["ingot.pipelines.dedup.settle"], "AT_ONCE", at_once)
    store, pairs = steps.workspace.store, graph(seed)
    found = removals(store, settle_edges(steps, verified(store, pairs)))
    assert found == by_definition(pairs)
    rounds = sum(step.startswith("settle-") for step in steps.done)
    assert (rounds > 1) == (at_once < 10**6)


def test_no_chain_removes_what_is_not_near_one_that_stays(steps: Steps) -> None:
    # 1 goes for 0, so 2 stays although it is near 1, and 3 goes for 2, not 1
    pairs = {1: {0: 0.85}, 2: {1: 0.9}, 3: {1: 0.95, 2: 0.81}}
    store = steps.workspace.store
    assert removals(store, settle_edges(steps, verified(store, pairs))) == {1: (0, 0.85), 3: (2, 0.81)}


def test_nothing_to_settle_is_no_fault(steps: Steps) -> None:
    store = steps.workspace.store
    assert removals(store, settle_edges(steps, verified(store, {}))) == {}


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("at_once", [10**6, 0])
def test_of_each_component_the_best_stays(
    steps: Steps, monkeypatch: pytest.MonkeyPatch, at_once: int, seed: int
) -> None:
    monkeypatch.setattr(sys.modules["ingot.pipelines.dedup.components"], "AT_ONCE", at_once)
    store, pairs = steps.workspace.store, graph(seed)
    draw = np.random.Generator(np.random.PCG64(seed))
    buckets = draw.integers(0, 2**64, sum(map(len, pairs.values())), np.uint64)
    edges = [(worse, better) for worse, others in pairs.items() for better in others]
    own = [
        (bucket, document, 0, place(document))
        for bucket, edge in zip(buckets.tolist(), edges, strict=True)
        for document in edge
    ]
    bands = put_run(store, np.array(sorted(own), BAND), "hash", hash_bounds(3))
    documents = [np.zeros(300, DOCUMENT) for _ in range(FILES)]
    for rows in documents:
        rows["id_high"] = 1000 + np.arange(300)
    signed = {number: {"documents": put_rows(store, rows)} for number, rows in enumerate(documents)}
    found = removals(store, join_components(steps, [bands], signed))

    best = list(range(300))
    for _ in best:  # no chain is longer
        for worse, better in edges:
            best[worse] = best[better] = min(best[worse], best[better])
    assert {document: witness for document, (witness, _) in found.items()} == {
        document: least for document, least in enumerate(best) if least != document
    }
