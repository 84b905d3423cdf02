"""Verification: the exact Jaccard similarity of every candidate pair's shingle sets.

A shared bucket is a reason to look, never a reason to remove. Where `decide` is signature, the similarity is
estimated instead, as the share of equal minima: four bytes a permutation are stored and sent, however long
the document is, and given up is that what goes is as near as it is said to be. With k permutations the
estimate's standard error is √(J (1 − J) / k): with 128 of them one in ten of the pairs at 0.75 passes a
threshold of 0.8, and one in seventeen of those at 0.85 is missed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from ingot.pipelines.compiled import compiled
from ingot.pipelines.dedup.candidates import asks_of, distinct_pairs
from ingot.pipelines.dedup.exchange import location_bounds, put_rows, put_run, read_partition, read_segments
from ingot.pipelines.dedup.rows import EDGE, PAIR, ROW_BITS, Numbers, Rows
from ingot.pipelines.dedup.ship import HEADER, Hashes, read_documents, read_shingles
from ingot.pipelines.store import Store


def verify_pairs(store: Store, body: Mapping[str, Any]) -> dict[str, Any]:
    """A partition of the pairs → `edges` (EDGE rows of those that reach the threshold, sorted by the worse
    document and the better one's rank) and `asks`, a run of ASK rows for their better documents.

    body: `pairs` (runs of PAIR rows), `sets` (ship_shingles' runs), `partition`, `threshold`, `signatures`
    (the length of those that stand in place of the shingles, or 0), `cuts`, and `first` and `signed` as in
    ship_shingles."""
    pairs = distinct_pairs(read_partition(store, body["pairs"], body["partition"], PAIR))
    places, worse = np.unique(pairs["worse"], return_inverse=True)
    documents = read_documents(store, body, places)
    own = read_shingles(store, body, places, documents)
    firsts = np.append(0, np.cumsum(documents["shingles"].astype(np.int64)))
    by_better = np.argsort(pairs["better"], kind="stable")
    betters = pairs["better"][by_better]
    parts = [np.empty(0, EDGE)]
    for data in read_segments(store, body["sets"], body["partition"]):
        sent = np.frombuffer(data, np.uint64)
        starts = _starts(sent)
        # each pair's better document is in one of the runs, as it is sent once to a partition
        left = np.searchsorted(betters, sent[starts], side="left")
        right = np.searchsorted(betters, sent[starts], side="right")
        chosen = by_better[_ranges(left, right)]
        better = np.repeat(starts, right - left)
        similarity = np.empty(len(chosen))
        if body["signatures"]:
            _agreement(own, firsts, worse[chosen], sent, better, body["signatures"], similarity)
        else:
            _jaccard(own, firsts, worse[chosen], sent, better, body["threshold"], similarity)
        near = similarity >= body["threshold"]
        parts.append(
            _edges(pairs[chosen[near]], documents[worse[chosen[near]]], sent, better[near], similarity[near])
        )
    edges = np.concatenate(parts)
    edges = edges[np.lexsort((edges["better_high"], edges["better_rank"], edges["worse"]))]
    # Of earlier snapshots only those that stay have shingles to be near to.
    edges["better_stays"] = edges["better"] < sum(files for files, _ in body["cuts"][:-1]) << ROW_BITS
    open_ = edges[edges["better_stays"] == 0]
    bounds = location_bounds(body["cuts"])
    return {
        "edges": put_rows(store, edges),
        "asks": put_run(store, asks_of(open_, bounds), "better", bounds),
        "pairs": len(pairs),
        "verified": len(edges),
    }


def _edges(
    pairs: Rows, documents: Rows, sent: Hashes, better: Numbers, similarity: npt.NDArray[np.float64]
) -> Rows:
    edges = np.zeros(len(pairs), EDGE)
    for name in ("worse", "better", "bands"):
        edges[name] = pairs[name]
    edges["similarity"] = similarity
    edges["rank"], edges["id_high"] = documents["rank"], documents["id_high"]
    for offset, name in enumerate(("better_rank", "better_high", "better_low"), start=1):
        edges[name] = sent[better + offset]
    return edges


def _ranges(left: Numbers, right: Numbers) -> Numbers:
    """The numbers left[0] … right[0] - 1, left[1] … right[1] - 1, and so on."""
    sizes = right - left
    return np.repeat(left - np.cumsum(sizes) + sizes, sizes) + np.arange(sizes.sum())


@compiled
def _starts(sent: Hashes) -> Numbers:
    """Where each set of a shipped run begins."""
    starts = np.empty(len(sent) // HEADER, np.int64)
    count = 0
    at = np.int64(0)
    while at < len(sent):
        starts[count] = at
        count += 1
        at += np.int64(sent[at + HEADER - 1]) + HEADER
    return starts[:count]


@compiled
def _jaccard(
    own: Hashes,
    firsts: Numbers,
    worse: Numbers,
    sent: Hashes,
    better: Numbers,
    threshold: float,
    similarity: npt.NDArray[np.float64],
) -> None:
    """similarity[k] = |A ∩ B| / |A ∪ B| of set number worse[k] of `own` and the set that begins at better[k]
    of `sent`; 0 where their sizes alone, or what is left to compare, exclude the threshold."""
    for pair in range(len(worse)):
        i, i_end = firsts[worse[pair]], firsts[worse[pair] + 1]
        j = better[pair] + HEADER
        j_end = j + np.int64(sent[better[pair] + HEADER - 1])
        total = (i_end - i) + (j_end - j)
        similarity[pair] = 0.0
        shared = 0
        # J ≥ t asks for shared ≥ t / (1 + t) of both sizes; a little less, for what rounding does
        least = threshold / (1 + threshold) * total - 1e-6
        while i < i_end and j < j_end:
            if shared + min(i_end - i, j_end - j) < least:
                break
            a, b = own[i], sent[j]
            shared += a == b
            i += a <= b
            j += b <= a
        else:
            similarity[pair] = shared / (total - shared)


@compiled
def _agreement(
    own: Hashes,
    firsts: Numbers,
    worse: Numbers,
    sent: Hashes,
    better: Numbers,
    permutations: int,
    similarity: npt.NDArray[np.float64],
) -> None:
    """similarity[k]: the share of equal minima in two signatures, which stand where _jaccard has sets. One of
    a document without shingles is empty, and like no other."""
    for pair in range(len(worse)):
        i, j = firsts[worse[pair]], better[pair] + HEADER
        similarity[pair] = 0.0
        if firsts[worse[pair] + 1] == i or sent[j - 1] == 0:
            continue
        equal = 0
        for number in range(permutations):
            shift = np.uint64(32 * (number % 2))
            differ = (own[i + number // 2] ^ sent[j + number // 2]) >> shift
            equal += differ & np.uint64(0xFFFFFFFF) == 0
        similarity[pair] = equal / permutations
