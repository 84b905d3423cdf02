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
import numpy.typing as npt

from ingot.pipelines.dedup.exchange import location_bounds, put_run, read_catalogue, read_partition
from ingot.pipelines.dedup.rows import BAND, PAIR, Rows, blocks, by_rank
from ingot.pipelines.store import Store

REPRESENTATIVES = 32
BLOCK_PAIRS = 4_000_000  # held at once: 64 MB, and some copies

Locations = npt.NDArray[np.uint64]


def find_candidates(store: Store, body: Mapping[str, Any]) -> dict[str, Any]:
    """A partition of the bands → `runs` of PAIR rows, distinct within each, cut by the worse document's
    location.

    body: `runs` (the catalogue of sign's bands), `partition`, `files` and `location_partitions`."""
    entries = read_partition(store, read_catalogue(store, body["runs"]), body["partition"], BAND)
    entries = entries[by_rank(entries, "hash")]
    bounds = location_bounds(body["location_partitions"], body["files"])
    begins = np.append(True, entries["hash"][1:] != entries["hash"][:-1])[: len(entries)]
    first = np.maximum.accumulate(np.where(begins, np.arange(len(entries)), 0))  # of the entry's bucket
    partners = np.minimum(np.arange(len(entries)) - first, REPRESENTATIVES)
    runs = []
    for start, stop in blocks(partners, BLOCK_PAIRS):
        own = partners[start:stop]
        nth = np.arange(own.sum()) - np.repeat(np.cumsum(own) - own, own)  # of an entry's partners
        worse = np.repeat(entries["location"][start:stop], own)
        better = entries["location"][np.repeat(first[start:stop], own) + nth]
        runs.append(put_run(store, distinct_pairs(worse, better), "worse", bounds))
    return {"runs": runs}


def distinct_pairs(worse: Locations, better: Locations) -> Rows:
    """The PAIR rows sorted, each once."""
    order = np.lexsort((better, worse))
    pairs = np.empty(len(order), PAIR)
    pairs["worse"], pairs["better"] = worse[order], better[order]
    if len(pairs) == 0:
        return pairs
    return pairs[np.append(True, pairs[1:] != pairs[:-1])]
