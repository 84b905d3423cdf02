"""Workspaces for the tests of dedup, without a cluster and without words."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from ingot.pipelines.units import Unit, Workspace


class Quiet:
    """A `Progress` that is told and tells nothing."""

    def __getattr__(self, name: str) -> Any:
        return lambda *words, **figures: None


class InProcess(Workspace):
    """Runs the units here, one after another, and leaves their records."""

    def _run_tasks(
        self, prefix: str, todo: Sequence[Unit], work: Any, records: dict[str, dict[str, Any]]
    ) -> None:
        for unit in todo:
            body = json.loads(json.dumps(dict(unit.body)))
            record = {**work(self.store, body), "ran": {"host": "here", "pid": 0}}
            self.store.create(f"{prefix}{unit.name}.json", json.dumps(record).encode())
            records[unit.name] = json.loads(json.dumps(record))
