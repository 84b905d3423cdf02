"""Following: what copies go for, once it is settled what their leaders go for.

A copy goes for its leader. Where the leader went, the copy goes for the same witness: one of equal content is
as near to it as the leader was and is a near duplicate too; one of the same address is still a copy of that
address, of a text that was not compared."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ingot.pipelines.dedup.exchange import location_bounds, read_partition
from ingot.pipelines.dedup.rows import FOLLOWER, KINDS, REMOVAL
from ingot.pipelines.dedup.write import put_removals
from ingot.pipelines.store import Store


def follow_leaders(store: Store, body: Mapping[str, Any]) -> dict[str, Any]:
    """A partition of the leaders → what put_removals gives for their followers.

    body: `followers` (join_keys' runs), `kind` (of KINDS), `removals` (runs of REMOVAL rows that hold what
    went of the leaders), `partition`, `cuts`."""
    followers = read_partition(store, body["followers"], body["partition"], FOLLOWER)
    gone = read_partition(store, body["removals"], body["partition"], REMOVAL)
    gone = gone[np.argsort(gone["location"], kind="stable")]
    kind = KINDS.index(body["kind"])
    rows = np.zeros(len(followers), REMOVAL)
    rows["location"], rows["witness"] = followers["location"], followers["leader"]
    rows["witness_high"], rows["witness_low"] = followers["leader_high"], followers["leader_low"]
    rows["similarity"] = 1.0 if body["kind"] == "exact" else np.nan
    rows["kind"] = kind
    if len(gone):
        place = np.minimum(np.searchsorted(gone["location"], followers["leader"]), len(gone) - 1)
        went = gone["location"][place] == followers["leader"]
        leader = gone[place[went]]
        for name in ("witness", "witness_high", "witness_low"):
            rows[name][went] = leader[name]
        if body["kind"] == "exact":
            for name in ("similarity", "bands", "kind"):
                rows[name][went] = leader[name]
    return put_removals(store, rows, location_bounds(body["cuts"]))
