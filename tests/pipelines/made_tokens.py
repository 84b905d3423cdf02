"""Tokens artifacts from arrays, without the stages before."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow

from ingot.pipelines.artifact import Artifact, File, commit, put_json, put_table
from ingot.pipelines.shards import put_shard
from ingot.pipelines.store import Store


def put_tokens(
    store: Store,
    shards: list[np.ndarray],
    held_out: np.ndarray,
    dtype: str = "<u2",
    sources: list[str] | None = None,
) -> Artifact:
    """A tokens artifact of these shards, each of its source; 0 ends a text. Its index has the documents of
    the training shards."""
    splits = {"train": shards, "held-out": [held_out]}
    files: dict[str, File] = {}
    names: dict[str, list[list[Any]]] = {split: [] for split in splits}
    for split, parts in splits.items():
        for number, part in enumerate(parts):
            name = f"{split}/{number:05d}.bin"
            files[name], files[f"blocks/{name}"] = put_shard(store, part.astype(dtype))
            names[split].append([name, len(part)])
    for number, part in enumerate(shards):
        stops = np.flatnonzero(part == 0)
        offsets = np.concatenate([[0], stops[:-1] + 1]) if len(stops) else stops
        index = {"split": ["train"] * len(stops), "offset": offsets, "tokens": stops - offsets}
        files[f"index/{number:05d}.parquet"] = put_table(store, pyarrow.table(index))
    meta = {"dtype": np.dtype(dtype).name, "vocabulary": 300, "end_of_text": 0, "shards": names}
    meta["sources"] = sources or ["made"] * len(shards)
    files["meta.json"] = put_json(store, meta)
    return commit(store, "artifacts/tokens/made", "tokens", "made", files, {}, {})
