"""One bucket, in a process of its own: `python dedup_bucket.py STORE MEMBERS` finds its candidates and prints
how many pairs there are and the peak of the memory in bytes, as JSON."""

from __future__ import annotations

import json
import sys

import numpy as np
from dedup_driver import peak

from ingot.pipelines.dedup.candidates import find_candidates
from ingot.pipelines.dedup.exchange import hash_bounds, put_run
from ingot.pipelines.dedup.rows import BAND, PAIR
from ingot.pipelines.store import open_store

if __name__ == "__main__":
    store, members = open_store(sys.argv[1]), int(sys.argv[2])
    entries = np.zeros(members, BAND)
    entries["hash"] = 1 << 40
    entries["rank"] = np.arange(members) % 1000
    entries["id_high"] = entries["location"] = np.arange(members)
    run = put_run(store, entries, "hash", hash_bounds(1))
    del entries
    body = {"runs": [run], "indexes": [], "partition": 0, "cuts": [[1, 1]]}
    pairs = sum(run["bytes"] for run in find_candidates(store, body)["pairs"]) // PAIR.itemsize
    print(json.dumps({"pairs": pairs, "peak": peak()}))
