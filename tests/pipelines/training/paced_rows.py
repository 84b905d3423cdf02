"""Rows that come slowly, so that a training lasts until a test is done with it. Workers import this by name,
with `tests/pipelines` on their path."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from typing import Any

from ingot.pipelines.store import Store
from ingot.pipelines.training.dataset import Share
from ingot.pipelines.training.tokens import TokenDataset


class PacedRows(TokenDataset):
    """A `TokenDataset` that takes `seconds` for the rows of a step as long as the object `gate` does not
    exist."""

    def __init__(self, store: Store, spec: Mapping[str, Any]) -> None:
        super().__init__(store, spec)
        self.store, self.gate, self.seconds = store, spec["gate"], spec["seconds"]
        self._pace = threading.Lock()  # steps are read ahead by several threads

    def share(self, step: int, rank: int, world: int, micro_batch: int) -> Share:
        with self._pace:
            if self.seconds and self.store.exists(self.gate):
                self.seconds = 0
            time.sleep(self.seconds)
        return super().share(step, rank, world, micro_batch)
