"""Rows that wait, so that a test can kill what reads them at a known step. Workers import this by name, with
`tests/pipelines` on their path."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from ingot.pipelines.store import Store
from ingot.pipelines.training.dataset import Share
from ingot.pipelines.training.tokens import TokenDataset


class GatedRows(TokenDataset):
    """A `TokenDataset` that gives the rows of step `gated_step` only when the object `gate` exists."""

    def __init__(self, store: Store, spec: Mapping[str, Any]) -> None:
        super().__init__(store, spec)
        self.store, self.gate, self.gated_step = store, spec["gate"], spec["gated_step"]

    def share(self, step: int, rank: int, world: int, micro_batch: int) -> Share:
        while step == self.gated_step and not self.store.exists(self.gate):
            time.sleep(0.02)
        return super().share(step, rank, world, micro_batch)
