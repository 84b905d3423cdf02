"""The log of a training: one JSON line a step, in the store as numbered chunks that are created once.

`<key>/log/<attempt>-<first step>.jsonl`. Steps that were taken and then lost with a worker stand there once
an attempt; the attempt that went on counts."""

from __future__ import annotations

import json
from typing import Any

from ingot.pipelines.store import Store


class StepLog:
    """Lines that are not in the store yet."""

    def __init__(self, key: str, attempt: int) -> None:
        self.key, self.attempt = key, attempt
        self._lines: list[dict[str, Any]] = []

    def add(self, line: dict[str, Any]) -> None:
        """`line["step"]` is the number of the step, from 0. Numbers keep every digit."""
        self._lines.append(line)

    def take(self) -> tuple[str, bytes] | None:
        """The lines so far as an object and its key, or None if there are none."""
        if not self._lines:
            return None
        key = f"{self.key}/log/{self.attempt:06d}-{self._lines[0]['step']:08d}.jsonl"
        data = "".join(json.dumps(line) + "\n" for line in self._lines).encode()
        self._lines = []
        return key, data


def read_log(store: Store, key: str) -> list[dict[str, Any]]:
    """The lines of the training at `key`, one a step, in the order of steps: of a step that several attempts
    took, the last one's."""
    lines: dict[int, dict[str, Any]] = {}
    for name in store.list(f"{key}/log/"):
        for text in store.read(name).splitlines():
            line = json.loads(text)
            lines[line["step"]] = line
    return [lines[step] for step in sorted(lines)]
