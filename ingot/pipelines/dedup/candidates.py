"""Candidates: pairs of documents that share a bucket, which is a band with equal minima.

Every document is paired with the best-ranked members of its bucket, at most REPRESENTATIVES of them: all
pairs in a small bucket, and a number linear in its size in a large one, where all pairs of a million members
would never end. The choice depends on ranks alone. What it costs was measured on transformers' 2,719 sources,
whose `__init__.py` are a cluster of hundreds: of 480 documents that go by all pairs, 472 go with 16
representatives, 476 with 32, 478 with 64."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ingot.pipelines.dedup.exchange import (
    location_bounds,
    look_up,
    partitions_of,
    put_index,
    put_run,
    read_partition,
)
from ingot.pipelines.dedup.rows import ASK, BAND, PAIR, Locations, Rows, begins, blocks, by_rank
from ingot.pipelines.sections import MOST_BANDS
from ingot.pipelines.store import Store

REPRESENTATIVES = 32
BLOCK_PAIRS = 2_000_000  # held at once: 48 MB, and some copies


def find_candidates(store: Store, body: Mapping[str, Any]) -> dict[str, Any]:
    """A partition of the bands → `pairs`, runs of PAIR rows, distinct within each, cut by the worse
    document's location, and for each `asks`, a run of the ASK rows for their better documents, cut by the
    location of these; `asked`, the partitions that hold these; and an index of the new representatives.

    body: `runs` (of BAND rows), `partition`, `indexes` (of the representatives of earlier snapshots),
    `cuts`."""
    new = read_partition(store, body["runs"], body["partition"], BAND)
    earlier = look_up(store, body["indexes"], "hash", np.unique(new["hash"]), BAND)
    entries = np.concatenate([earlier, new])
    is_new = np.arange(len(entries)) >= len(earlier)
    order = by_rank(entries, "hash")
    entries, is_new = entries[order], is_new[order]
    bounds = location_bounds(body["cuts"])
    first = np.maximum.accumulate(np.where(begins(entries, "hash"), np.arange(len(entries)), 0))
    place = np.arange(len(entries)) - first
    partners = np.where(is_new, np.minimum(place, REPRESENTATIVES), 0)
    bands = np.uint64(1) << (entries["hash"] & np.uint64(MOST_BANDS - 1))
    runs, asks = [], []
    asked: set[int] = set()
    for start, stop in blocks(partners, BLOCK_PAIRS):
        own = partners[start:stop]
        nth = np.arange(own.sum()) - np.repeat(np.cumsum(own) - own, own)  # of an entry's partners
        pairs = np.empty(len(nth), PAIR)
        pairs["worse"] = np.repeat(entries["location"][start:stop], own)
        pairs["better"] = entries["location"][np.repeat(first[start:stop], own) + nth]
        pairs["bands"] = np.repeat(bands[start:stop], own)
        pairs = distinct_pairs(pairs)
        runs.append(put_run(store, pairs, "worse", bounds))
        asks.append(put_run(store, asks_of(pairs, bounds), "better", bounds))
        asked |= set(np.unique(partitions_of(bounds, pairs["better"])).tolist())
    index = put_index(store, entries[is_new & (place < REPRESENTATIVES)], "hash")
    return {"pairs": runs, "asks": asks, "asked": sorted(asked), "index": index}


def distinct_pairs(pairs: Rows) -> Rows:
    """The pairs sorted, each once, with the bands of all that were the same."""
    pairs = pairs[np.lexsort((pairs["better"], pairs["worse"]))]
    first = np.flatnonzero(begins(pairs, "worse", "better"))
    distinct = pairs[first]
    if len(first):
        distinct["bands"] = np.bitwise_or.reduceat(pairs["bands"], first)
    return distinct


def asks_of(pairs: Rows, bounds: Locations) -> Rows:
    """Each better document once for every partition of worse ones that is paired with it."""
    asks = np.empty(len(pairs), ASK)
    asks["better"], asks["partition"] = pairs["better"], partitions_of(bounds, pairs["worse"])
    return distinct_asks(asks)


def distinct_asks(asks: Rows) -> Rows:
    """The asks sorted, each once."""
    asks = asks[np.lexsort((asks["partition"], asks["better"]))]
    return asks[begins(asks, "better", "partition")]
