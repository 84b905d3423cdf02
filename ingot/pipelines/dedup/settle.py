"""Settling: which near duplicates go, and for whom.

In the order of rank, the best first, a document goes if and only if it has an edge to a better-ranked
document that stays; its witness is the best-ranked of those. No chain of edges ever removes a document that
is not itself near one that stays. (Those that stay are the lexicographically first maximal independent set
of the graph of edges: there is only one, however it is found; see Blelloch, Fineman, Shun, arXiv 1202.3205.)

Few edges are settled in one task. More are settled in rounds: a task for each partition of the documents
decides what its own edges and the decisions of earlier rounds allow and tells the partitions that asked,
until few enough are left for one task. The rounds change who decides, never what."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt

from ingot.pipelines.compiled import compiled
from ingot.pipelines.dedup.exchange import (
    READERS,
    Run,
    location_bounds,
    partitions_of,
    put_rows,
    put_segments,
    read_partition,
    read_rows,
)
from ingot.pipelines.dedup.rows import ASK, DECISION, EDGE, REMOVAL, Numbers, Rows, begins
from ingot.pipelines.dedup.steps import Record, Steps
from ingot.pipelines.dedup.write import put_removals
from ingot.pipelines.store import Store

AT_ONCE = 1_000_000  # edges that one task settles: 80 MB, and some copies

UNDECIDED, STAYS, GOES, UNKNOWN = 0, 1, 2, 3


def settle_edges(steps: Steps, verified: Sequence[Record]) -> list[Record]:
    """verify_pairs' records → put_removals' records of all that goes."""
    partitions, parts = steps.file_partitions, steps.new_parts
    edges = [record["edges"] for record in verified]
    left = sum(record["verified"] for record in verified)
    asked = steps.exchange("verified-asks", (record["asks"] for record in verified), partitions)
    asks: list[Sequence[Run]] = [asked[part] for part in parts]
    told: list[Sequence[Run]] = [[] for _ in parts]
    removed: list[Record] = []
    number = 0
    while left > AT_ONCE:
        number += 1
        bodies = {
            part: {"edges": edges[at], "asks": asks[at], "told": told[at]} for at, part in enumerate(parts)
        }
        records = steps.for_places(f"settle-{number}", settle_round, bodies.__getitem__, steps.places)
        removed += records
        decided = steps.exchange(f"decisions-{number}", (each["decisions"] for each in records), partitions)
        edges, asks = [each["edges"] for each in records], [[each["asks"]] for each in records]
        told = [decided[part] for part in parts]
        left = sum(each["undecided"] for each in records)
    some = [entry for entry in edges if entry["rows"]]
    heard = {str(part): runs for part, runs in zip(parts, told, strict=True) if runs}
    return [*removed, steps.once("settle", settle_rest, {"edges": some, "told": heard, **steps.places})]


def settle_round(store: Store, body: Mapping[str, Any]) -> dict[str, Any]:
    """A partition of the documents → what put_removals gives for those whose witness is known, `decisions` (a
    run of DECISION rows, cut by the partition that asked), and for the next round the `edges` and `asks`
    that are left (`undecided`: how many edges).

    body: `edges` (the entry of EDGE rows by the worse document and the better one's rank), `asks` (runs of
    ASK rows), `told` (the decisions of the round before), `partition`, `cuts`."""
    bounds = location_bounds(body["cuts"])
    part = body["partition"]
    told = read_partition(store, body["told"], part, DECISION)
    edges = _told(read_rows(store, body["edges"], EDGE), told)
    local = partitions_of(bounds, edges["better"]) == part
    settled = _Settled(edges, local)

    asks = read_partition(store, body["asks"], part, ASK)
    place = np.searchsorted(settled.places, asks["better"])
    place[place == len(settled.places)] = 0
    known = np.full(len(asks), STAYS, np.int8)  # what has no edge to a better one
    if len(settled.places):
        decided = settled.places[place] == asks["better"]
        known[decided] = settled.status[place[decided]]
    answered = known != UNDECIDED
    order = np.argsort(asks["partition"][answered], kind="stable")
    decisions = np.empty(int(answered.sum()), DECISION)
    decisions["location"] = asks["better"][answered][order]
    decisions["stays"] = known[answered][order] == STAYS
    sizes = np.bincount(asks["partition"][answered].astype(np.int64), minlength=len(bounds))
    pending = asks[~answered]
    whole = np.array([pending.nbytes])
    return {
        **put_removals(store, settled.removals(), bounds),
        "decisions": put_segments(store, decisions.tobytes(), sizes * DECISION.itemsize),
        "edges": put_rows(store, settled.left()),
        "asks": put_segments(store, pending.tobytes(), whole, part),
        "undecided": len(settled.left()),
    }


def settle_rest(store: Store, body: Mapping[str, Any]) -> dict[str, Any]:
    """All edges that are left → what put_removals gives.

    body: `edges` (the entries of the partitions that have any), `told` (as settle_round takes it, by
    partition), `cuts`."""
    with ThreadPoolExecutor(READERS) as pool:  # few rows from many partitions
        rows = pool.map(lambda entry: read_rows(store, entry, EDGE), body["edges"])
        edges = np.concatenate([np.empty(0, EDGE), *rows])
        told = body["told"].items()
        heard = pool.map(lambda item: read_partition(store, item[1], int(item[0]), DECISION), told)
        edges = _told(edges, np.concatenate([np.empty(0, DECISION), *heard]))
    settled = _Settled(edges, np.ones(len(edges), bool))
    return put_removals(store, settled.removals(), location_bounds(body["cuts"]))


def _told(edges: Rows, told: Rows) -> Rows:
    """The edges with what was told of their better documents: those to one that goes are gone."""
    if len(told) == 0 or len(edges) == 0:
        return edges
    told = told[np.argsort(told["location"], kind="stable")]
    place = np.minimum(np.searchsorted(told["location"], edges["better"]), len(told) - 1)
    heard = told["location"][place] == edges["better"]
    stays = told["stays"][place] == 1
    edges = edges.copy()
    edges["better_stays"][heard & stays] = 1
    return edges[~(heard & ~stays)]


class _Settled:
    """What can be decided about the worse documents of `edges`, of which those that are `local` lead to
    documents that stay unless they are worse in another edge."""

    def __init__(self, edges: Rows, local: npt.NDArray[np.bool_]) -> None:
        self.edges = edges
        first = np.flatnonzero(begins(edges, "worse"))
        self.places = edges["worse"][first]
        self.firsts = np.append(first, len(edges))
        order = np.lexsort((edges["id_high"][first], edges["rank"][first]))
        place = np.searchsorted(self.places, edges["better"])
        place[place == len(self.places)] = 0
        within = self.places[place] == edges["better"] if len(first) else np.zeros(0, bool)
        better = np.where(within, place, -1)
        known = np.where((edges["better_stays"] == 1) | (local & ~within), STAYS, UNKNOWN).astype(np.int8)
        self.status = np.zeros(len(first), np.int8)
        self.witness = np.full(len(first), -1, np.int64)
        self.stays = np.zeros(len(edges), bool)
        self.open = np.zeros(len(edges), bool)
        _settle(order, self.firsts, better, known, self.status, self.witness, self.stays, self.open)

    def removals(self) -> Rows:
        """REMOVAL rows of the documents whose witness is known."""
        edges = self.edges[self.witness[self.witness >= 0]]
        rows = np.zeros(len(edges), REMOVAL)
        rows["location"], rows["witness"] = edges["worse"], edges["better"]
        rows["witness_high"], rows["witness_low"] = edges["better_high"], edges["better_low"]
        rows["similarity"], rows["bands"] = edges["similarity"], edges["bands"]
        return rows

    def left(self) -> Rows:
        """The edges that may still matter, and what is known of them."""
        edges = self.edges.copy()
        edges["better_stays"] = self.stays
        return edges[self.open]


@compiled
def _settle(
    order: Numbers,
    firsts: Numbers,
    better: Numbers,
    known: npt.NDArray[np.int8],
    status: npt.NDArray[np.int8],
    witness: Numbers,
    stays: npt.NDArray[np.bool_],
    left: npt.NDArray[np.bool_],
) -> None:
    """Decides the documents in the order of rank. Document d's edges are firsts[d] … firsts[d + 1] - 1, by
    the better one's rank; better[e] is the number of the edge's better document, or -1 where known[e] is all
    that is known. Fills `status`, `witness` (the deciding edge, once it is sure), and for the edges that are
    `left` whether their better document `stays`."""
    for document in order:
        undecided = 0
        goes = False
        for edge in range(firsts[document], firsts[document + 1]):
            now = known[edge] if known[edge] == STAYS or better[edge] < 0 else status[better[edge]]
            if now == GOES:
                continue
            if now == STAYS:
                goes = True
                stays[edge] = True
                if undecided == 0:
                    witness[document] = edge
                else:
                    left[edge] = True
                break
            undecided += 1
            left[edge] = True
        if goes:
            status[document] = GOES
            if witness[document] >= 0:
                for edge in range(firsts[document], firsts[document + 1]):
                    left[edge] = False
        elif undecided == 0:
            status[document] = STAYS
