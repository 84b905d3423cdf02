"""The log of a training: one JSON line a step, in the store as numbered chunks that are created once.

`<key>/log/<attempt>-<first step>.jsonl`. In `samples` a line has the numbers of the samples that the workers
really read, in the order of the global batch. Steps that were taken and then lost with a worker stand there
once an attempt; the attempt that went on counts."""

from __future__ import annotations

import json
from typing import Any

import numpy as np

from ingot.pipelines.records import read_lines
from ingot.pipelines.store import Store
from ingot.pipelines.training.dataset import Share
from ingot.pipelines.training.group import Group


class StepLog:
    """Lines that are not in the store yet."""

    def __init__(self, key: str, attempt: int, group: Group) -> None:
        self.key, self.attempt, self.group = key, attempt, group
        self._lines: list[dict[str, Any]] = []
        self._read: list[np.ndarray] = []  # for each line: number of the line, position, sample

    def add(self, line: dict[str, Any], share: Share) -> None:
        """`line["step"]` is the number of the step, from 0. Numbers keep every digit. `share` is what this
        worker read."""
        lines = np.full(len(share.positions), len(self._lines))
        self._read.append(np.stack([lines, share.positions, share.samples], axis=1))
        self._lines.append(line)

    def take(self) -> tuple[str, bytes] | None:
        """The lines so far as an object and its key, or None if there are none. The workers must ask
        together."""
        if not self._lines:
            return None
        read = self.group.gather(np.concatenate(self._read))
        read = read[np.lexsort((read[:, 1], read[:, 0]))]
        ends = np.searchsorted(read[:, 0], np.arange(1, len(self._lines)))
        for line, part in zip(self._lines, np.split(read[:, 2], ends), strict=True):
            line["samples"] = part.tolist()
        key = f"{self.key}/log/{self.attempt:06d}-{self._lines[0]['step']:08d}.jsonl"
        data = "".join(json.dumps(line) + "\n" for line in self._lines).encode()
        self._lines, self._read = [], []
        return key, data


def chunks(store: Store, key: str) -> list[str]:
    """The names of the log's chunks, in the order in which they count: where two have a step, the later."""
    return sorted(store.list(f"{key}/log/"))


def read_log(store: Store, key: str) -> list[dict[str, Any]]:
    """The lines of the training at `key`, one a step, in the order of steps: of a step that several attempts
    took, the last one's."""
    lines: dict[int, dict[str, Any]] = {}
    for name in chunks(store, key):
        for line in read_lines(store, name, step=int):
            lines[line["step"]] = line
    return [lines[step] for step in sorted(lines)]


def copy_log(store: Store, source: str, key: str, step: int) -> None:
    """The lines of the first `step` steps at `source`, for the training at `key`, as before its attempts."""
    lines = [line for line in read_log(store, source) if line["step"] < step]
    data = "".join(json.dumps(line) + "\n" for line in lines).encode()
    store.create(f"{key}/log/{0:06d}-{0:08d}.jsonl", data)
