"""Connected components: of all documents that buckets chain together, only the best-ranked stays.

This is what FineWeb's recipe and most others do, for those who want the same. It gives up what the rest of
this package is for: a document goes although nothing was compared with it, for one it may share no word
with, and a document of a later snapshot may join two of an earlier one that both stayed, so that all
snapshots are decided at once.

Few links are joined in one task. More are joined by the alternating star algorithm (Kiveris, Lattanzi,
Mirrokni, Rastogi, Vassilvitskii, Connected Components in MapReduce and Beyond, 2014), a pair of steps a
round, until nothing changes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ingot.pipelines.dedup.exchange import (
    Run,
    location_bounds,
    put_run,
    read_partition,
    read_rows,
    read_run,
)
from ingot.pipelines.dedup.rows import (
    BAND,
    DOCUMENT,
    LINK,
    REMOVAL,
    Numbers,
    Rows,
    begins,
    by_rank,
    files_of,
    rows_of,
)
from ingot.pipelines.dedup.steps import Record, Steps
from ingot.pipelines.dedup.write import put_removals
from ingot.pipelines.store import Store

AT_ONCE = 2_000_000  # links that one task joins: 100 MB, and some copies


def join_components(steps: Steps, bands: Sequence[Run], signed: Mapping[int, Record]) -> list[Record]:
    """sign's runs of BAND rows → put_removals' records."""
    parts, partitions = steps.new_parts, steps.file_partitions
    runs = steps.exchange("bands", bands, steps.partitions)
    records = steps.for_hashes("links", find_links, lambda part: {"runs": runs[part]}, steps.places)
    turn, number = "large", 0
    seen: dict[str, list[str]] = {}
    while sum(record["links"] for record in records) > AT_ONCE:
        links = steps.exchange(f"links-{number}", (record["runs"][turn] for record in records), partitions)
        number += 1
        bodies = {part: {"runs": links[part], "turn": turn} for part in parts}
        records = steps.for_places(f"star-{number}", draw_stars, bodies.__getitem__, steps.places)
        digests = [record["runs"]["small"]["file"]["sha256"] for record in records]
        if digests == seen.get(turn):
            break
        seen[turn] = digests
        turn = "small" if turn == "large" else "large"
    else:
        whole = [record["runs"]["small"] for record in records]
        records = [steps.once("components", join_links, {"runs": whole, **steps.places})]
    leaders = steps.exchange("leaders", (record["runs"]["leader"] for record in records), partitions)
    return steps.for_places(
        "label",
        name_leaders,
        lambda part: {
            "runs": leaders[part],
            "first": steps.files_of(part).start,
            "documents": [signed[number]["documents"] for number in steps.files_of(part)],
        },
        steps.places,
    )


def find_links(store: Store, body: Mapping[str, Any]) -> dict[str, Any]:
    """A partition of the bands → what put_links gives for each document and the best of its bucket.

    body: `runs` (of BAND rows), `partition`, `cuts`."""
    entries = read_partition(store, body["runs"], body["partition"], BAND)
    entries = entries[by_rank(entries, "hash")]
    first = np.flatnonzero(begins(entries, "hash"))
    best = np.repeat(first, np.diff(np.append(first, len(entries))))
    return put_links(store, _links(entries, np.arange(len(entries)), best), body)


def _links(entries: Rows, worse: Numbers, better: Numbers) -> Rows:
    links = np.empty(len(worse), LINK)
    for name, end in (("worse", worse), ("better", better)):
        links[name] = entries["location"][end]
        links[f"{name}_rank"], links[f"{name}_id"] = entries["rank"][end], entries["id_high"][end]
    return links


def put_links(store: Store, links: Rows, body: Mapping[str, Any]) -> dict[str, Any]:
    """`links`, how many there are, each once and none to itself; and `runs` of LINK rows, cut by location,
    for the next step: by the worse end (`small`), by both (`large`), by the better one (`leader`)."""
    bounds = location_bounds(body["cuts"])
    links = links[links["worse"] != links["better"]]
    links = links[np.lexsort((links["better"], links["worse"]))]
    links = links[begins(links, "worse", "better")]
    turned = np.empty(len(links), LINK)
    for end in ("", "_rank", "_id"):
        turned[f"worse{end}"], turned[f"better{end}"] = links[f"better{end}"], links[f"worse{end}"]
    both = np.concatenate([links, turned])
    both = both[np.argsort(both["worse"], kind="stable")]
    by_better = links[np.argsort(links["better"], kind="stable")]
    return {
        "links": len(links),
        "runs": {
            "small": put_run(store, links, "worse", bounds),
            "large": put_run(store, both, "worse", bounds),
            "leader": put_run(store, by_better, "better", bounds),
        },
    }


def draw_stars(store: Store, body: Mapping[str, Any]) -> dict[str, Any]:
    """A partition of the documents → what put_links gives of their stars: each document's neighbours that are
    worse (`turn` large) or better (small) are linked to the best of it and all its neighbours, instead of to
    itself.

    body: `runs` (of LINK rows by the document), `turn`, `partition`, `cuts`."""
    rows = read_partition(store, body["runs"], body["partition"], LINK)
    order = np.lexsort((rows["better"], rows["better_id"], rows["better_rank"], rows["worse"]))
    rows = rows[order]
    first = np.flatnonzero(begins(rows, "worse"))
    best = rows[np.repeat(first, np.diff(np.append(first, len(rows))))]
    # the document itself may be the best of all
    itself = _precedes(best, "worse", "better")
    for end in ("", "_rank", "_id"):
        best[f"better{end}"] = np.where(itself, rows[f"worse{end}"], best[f"better{end}"])
    is_worse = _precedes(rows, "worse", "better")  # the neighbour, than the document
    chosen = rows[is_worse] if body["turn"] == "large" else rows[~is_worse]
    target = best[is_worse] if body["turn"] == "large" else best[~is_worse]
    links = np.empty(len(chosen), LINK)
    for end in ("", "_rank", "_id"):
        links[f"worse{end}"], links[f"better{end}"] = chosen[f"better{end}"], target[f"better{end}"]
    if body["turn"] == "small":
        links = np.concatenate([links, best[first]])
    return put_links(store, links, body)


def _precedes(rows: Rows, left: str, right: str) -> Any:
    """Whether the `left` end is the better one."""
    rank = rows[f"{left}_rank"] < rows[f"{right}_rank"]
    equal = rows[f"{left}_rank"] == rows[f"{right}_rank"]
    return rank | (equal & (rows[f"{left}_id"] < rows[f"{right}_id"]))


def join_links(store: Store, body: Mapping[str, Any]) -> dict[str, Any]:
    """All links → what put_links gives of each document and the best of its component.

    body: `runs` (of LINK rows), `cuts`."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    parts = [read_run(store, run, LINK) for run in body["runs"]]
    links = np.concatenate([np.empty(0, LINK), *parts])
    ends = np.concatenate(
        [
            links[[f"{end}{column}" for column in ("", "_rank", "_id")]].astype(
                [("location", "<u8"), ("rank", "<u8"), ("id_high", "<u8")]
            )
            for end in ("worse", "better")
        ]
    )
    order = by_rank(ends)
    ends = ends[order]
    first = begins(ends, "rank", "id_high")
    number = np.empty(len(ends), np.int64)
    number[order] = np.cumsum(first) - 1
    nodes = ends[first]
    weights = np.ones(len(links), bool)
    graph = coo_array((weights, (number[: len(links)], number[len(links) :])), shape=(len(nodes),) * 2)
    _, label = connected_components(graph, directed=False)
    best = np.unique(label, return_index=True)[1]  # nodes are by rank
    return put_links(store, _links(nodes, np.arange(len(nodes)), best[label]), body)


def name_leaders(store: Store, body: Mapping[str, Any]) -> dict[str, Any]:
    """A partition of the documents that stay for others → what put_removals gives for these.

    body: `runs` (of LINK rows by the better end), `documents` (the entries of sign's DOCUMENT rows, by file),
    `first` (the number of the first file), `partition`, `cuts`."""
    links = read_partition(store, body["runs"], body["partition"], LINK)
    links = links[np.argsort(links["better"], kind="stable")]
    removals = np.zeros(len(links), REMOVAL)
    removals["location"], removals["witness"], removals["similarity"] = (
        links["worse"],
        links["better"],
        np.nan,
    )
    files = files_of(links["better"]) - body["first"]
    for number in np.unique(files).tolist():
        own = files == number
        leaders = read_rows(store, body["documents"][number], DOCUMENT)[rows_of(links["better"][own])]
        removals["witness_high"][own], removals["witness_low"][own] = leaders["id_high"], leaders["id_low"]
    return put_removals(store, removals, location_bounds(body["cuts"]))
