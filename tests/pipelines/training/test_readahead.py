"""Coming steps are fetched while one runs, and come in their order."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest
import torch

from ingot.model import Batch
from ingot.pipelines.training import readahead
from ingot.pipelines.training.dataset import Share
from ingot.pipelines.training.readahead import ReadAhead


class Reader:
    """Fetches shares whose only sample is the step; a step for which the gate is shut waits for it."""

    def __init__(self, shut: set[int] | None = None) -> None:
        self.asked: set[int] = set()
        self.shut, self.gate = shut or set(), threading.Event()

    def __call__(self, step: int) -> Share:
        self.asked.add(step)
        if step in self.shut:
            assert self.gate.wait(30)
        batch = Batch(torch.zeros((1, 4), dtype=torch.int64), torch.zeros((1, 4), dtype=torch.int64))
        return Share([batch], np.zeros(1, np.int64), np.array([step]))

    def until(self, steps: set[int]) -> None:
        """Waits until these were asked for, and a little, in which others might be."""
        end = time.monotonic() + 30
        while self.asked != steps and time.monotonic() < end:
            time.sleep(0.005)
        time.sleep(0.05)
        assert self.asked == steps


def taken(ahead: ReadAhead, count: int) -> list[int]:
    return [int(ahead.take().samples[0]) for _ in range(count)]


@pytest.mark.parametrize("depth", [1, 3, 100])
def test_every_step_comes_once_and_in_order(depth: int) -> None:
    with ReadAhead(Reader(), 5, 40, depth) as ahead:
        assert taken(ahead, 35) == list(range(5, 40))


def test_so_many_steps_are_fetched_ahead_and_no_more() -> None:
    reader = Reader()
    with ReadAhead(reader, 0, 100, 3) as ahead:
        reader.until({0, 1, 2})
        taken(ahead, 2)
        reader.until({0, 1, 2, 3, 4})


def test_a_slow_step_holds_up_none_but_itself() -> None:
    reader = Reader(shut={2})
    with ReadAhead(reader, 0, 6, 6) as ahead:
        reader.until(set(range(6)))
        assert taken(ahead, 2) == [0, 1]
        reader.gate.set()
        assert taken(ahead, 4) == [2, 3, 4, 5]


def test_large_shares_are_fetched_fewer_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readahead, "AHEAD_BYTES", 2 * 64)  # two shares of 2 x 4 x 8 bytes
    reader = Reader()
    with ReadAhead(reader, 0, 100, 8) as ahead:
        reader.until(set(range(8)))
        assert taken(ahead, 7) == list(range(7))
        reader.until(set(range(9)))


def test_what_fetching_runs_into_is_raised_where_the_step_is_taken() -> None:
    def read(step: int) -> Share:
        if step == 2:
            raise OSError("no such shard")
        return Reader()(step)

    with ReadAhead(read, 0, 10, 4) as ahead:
        assert taken(ahead, 2) == [0, 1]
        with pytest.raises(OSError, match="no such shard"):
            ahead.take()
