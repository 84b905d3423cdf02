"""Resolution: which documents go, and for whom.

In the order of rank, the best first, a document goes if and only if it has a verified pair with a
better-ranked document that stays; its witness is the best-ranked of those. No chain of pairs ever removes a
document that is not itself near one that stays. (Those that stay are the lexicographically first maximal
independent set of the graph of verified pairs; see Blelloch, Fineman, Shun, arXiv 1202.3205.)"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from ingot.pipelines.dedup.compiled import compiled
from ingot.pipelines.dedup.exchange import location_bounds, put_rows, put_run, read_catalogue, read_rows
from ingot.pipelines.dedup.rows import EDGE, GAIN, NODE, REMOVAL, Rows, by_rank
from ingot.pipelines.store import Store

EXAMPLES = 20
SHOWN_BYTES = 1200  # about the length of the text that is shown beside its witness

Numbers = npt.NDArray[np.int64]


def resolve_pairs(store: Store, body: Mapping[str, Any]) -> dict[str, Any]:
    """All verified pairs → `removals` (a run of REMOVAL rows) and `gains` (a run of GAIN rows for their
    witnesses), both cut by location; `moved` (the REMOVAL rows of documents that have exact copies, which go
    the same way); `examples` and `shown`, removals as [location, witness, similarity].

    body: `verified` (the catalogue of verify_pairs' records), `files`, `location_partitions`."""
    verified = read_catalogue(store, body["verified"])
    edges = np.concatenate([np.empty(0, EDGE), *(read_rows(store, each["edges"], EDGE) for each in verified)])
    nodes = np.concatenate([np.empty(0, NODE), *(read_rows(store, each["nodes"], NODE) for each in verified)])
    nodes = nodes[np.unique(nodes["location"], return_index=True)[1]]
    ranked, witness, similarity = _settle_edges(nodes, edges)

    gone = np.flatnonzero(witness >= 0)
    removals = np.empty(len(gone), REMOVAL)
    removals["location"], removals["copies"] = ranked["location"][gone], ranked["copies"][gone]
    removals["witness"] = ranked["location"][witness[gone]]
    removals["witness_high"] = ranked["id_high"][witness[gone]]
    removals["witness_low"] = ranked["id_low"][witness[gone]]
    removals["similarity"] = similarity[gone]
    examples = removals[np.argsort(ranked["id_high"][gone], kind="stable")][:EXAMPLES]
    shown = removals[_most_readable(ranked, gone, witness, removals["similarity"])]

    gained = np.zeros(len(ranked), np.uint64)
    np.add.at(gained, witness[gone], removals["copies"])
    gains = np.empty(int((gained > 0).sum()), GAIN)
    gains["location"], gains["copies"] = ranked["location"][gained > 0], gained[gained > 0]
    gains.sort(order="location")
    removals.sort(order="location")
    bounds = location_bounds(body["location_partitions"], body["files"])
    return {
        "removals": put_run(store, removals, "location", bounds),
        "gains": put_run(store, gains, "location", bounds),
        "moved": put_rows(store, removals[removals["copies"] > 1]),
        "examples": [_pair(row) for row in examples],
        "shown": [_pair(row) for row in shown],
    }


def _settle_edges(nodes: Rows, edges: Rows) -> tuple[Rows, Numbers, npt.NDArray[np.float64]]:
    """The nodes by rank, and for each the number of its witness (-1: it stays) and their similarity."""
    order = by_rank(nodes)
    ranked = nodes[order]
    number = np.empty(len(nodes), np.int64)  # of the node at this place in `nodes`, which are by location
    number[order] = np.arange(len(nodes))
    worse = number[np.searchsorted(nodes["location"], edges["worse"])]
    better = number[np.searchsorted(nodes["location"], edges["better"])]
    by_worse = np.lexsort((better, worse))
    firsts = np.searchsorted(worse[by_worse], np.arange(len(nodes) + 1))
    witness = np.full(len(nodes), -1, np.int64)
    chosen = _settle(firsts, better[by_worse], witness)
    similarity = np.zeros(len(nodes))
    gone = witness >= 0
    similarity[gone] = edges["similarity"][by_worse][chosen[gone]]
    return ranked, witness, similarity


@compiled
def _settle(firsts: Numbers, better: Numbers, witness: Numbers) -> Numbers:
    """Fills `witness`; returns the number of the deciding edge of each node that goes. Node k's edges are
    better[firsts[k] : firsts[k + 1]], ascending."""
    chosen = np.full(len(witness), -1, np.int64)
    for node in range(len(witness)):
        for edge in range(firsts[node], firsts[node + 1]):
            if witness[better[edge]] < 0:
                witness[node] = better[edge]
                chosen[node] = edge
                break
    return chosen


def _most_readable(
    ranked: Rows, gone: Numbers, witness: Numbers, similarity: npt.NDArray[np.float64]
) -> Numbers:
    """The number in `gone` of the pair to show, if any: not equal, and of about SHOWN_BYTES."""
    unequal = np.flatnonzero(similarity < 1)
    lengths = ranked["length"][witness[gone[unequal]]].astype(np.int64)  # the witness is the longer one
    order = np.lexsort((ranked["id_high"][gone[unequal]], np.abs(lengths - SHOWN_BYTES)))
    return unequal[order[:1]]


def _pair(removal: Any) -> list[Any]:
    return [int(removal["location"]), int(removal["witness"]), float(removal["similarity"])]
