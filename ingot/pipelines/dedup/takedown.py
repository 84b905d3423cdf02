"""Takedown: documents that are to be nowhere, by id or address.

They are left out before anything is compared, so all that had gone for them is decided as if they had never
been there. What was read and signed of other files is found again; of those whose copies lead now the text is
read once more."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from ingot.pipelines.artifact import File, read_file
from ingot.pipelines.dedup.documents import read_columns
from ingot.pipelines.dedup.exchange import location_bounds, put_run
from ingot.pipelines.dedup.keys import address
from ingot.pipelines.dedup.rows import FOLLOWER, KINDS, NOBODY, REMOVAL, locations
from ingot.pipelines.dedup.write import put_removals
from ingot.pipelines.store import Store


def find_taken_down(store: Store, body: Mapping[str, Any]) -> dict[str, Any]:
    """A documents file → `excluded` (the locations of its documents that are named), the same as `gone` (a
    run of FOLLOWER rows that follow nobody), the names that were `found`, and what put_removals gives.

    body: `documents` (the file's entry), `number`, `takedown` (the entry of a JSON list of ids and
    addresses), `cuts`."""
    table = read_columns(store, body["documents"], ["id", "url"])
    wanted = json.loads(read_file(store, File.from_json(body["takedown"]), "the names of a takedown"))
    names = {name: name for name in wanted} | {page: name for name in wanted if (page := address(name))}
    named = [
        names.get(name) or names.get(address(url) or "")
        for name, url in zip(table["id"].to_pylist(), table["url"].to_pylist(), strict=True)
    ]
    places = locations(body["number"], table.num_rows)[np.array([name is not None for name in named], bool)]
    followers = np.zeros(len(places), FOLLOWER)
    followers["location"], followers["leader"] = places, NOBODY
    removals = np.zeros(len(places), REMOVAL)
    removals["location"], removals["similarity"] = places, np.nan
    removals["kind"] = KINDS.index("takedown")
    removals["witness"] = NOBODY
    bounds = location_bounds(body["cuts"])
    return {
        **put_removals(store, removals, bounds),
        "excluded": places.tolist(),
        "found": sorted({name for name in named if name is not None}),
        "gone": put_run(store, followers, "location", bounds),
    }
