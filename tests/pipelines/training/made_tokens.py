"""Tokens artifacts from arrays, without the stages before."""

from __future__ import annotations

from typing import Any

import numpy as np

from ingot.pipelines.artifact import Artifact, File, commit, put_file, put_json
from ingot.pipelines.store import Store


def put_tokens(store: Store, shards: list[np.ndarray], held_out: np.ndarray, dtype: str = "<u2") -> Artifact:
    """A tokens artifact of these shards."""
    splits = {"train": shards, "held-out": [held_out]}
    files: dict[str, File] = {}
    names: dict[str, list[list[Any]]] = {split: [] for split in splits}
    for split, parts in splits.items():
        for number, part in enumerate(parts):
            name = f"{split}/{number:05d}.bin"
            files[name] = put_file(store, part.astype(dtype).tobytes(), tokens=len(part))
            names[split].append([name, len(part)])
    meta = {"dtype": np.dtype(dtype).name, "vocabulary": 300, "end_of_text": 0, "shards": names}
    files["meta.json"] = put_json(store, meta)
    return commit(store, "artifacts/tokens/made", "tokens", "made", files, {}, {})
