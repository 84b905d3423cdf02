"""Rows are shared out so that workers neither wait for the driver nor for one another."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
from units_of_work import wait_for_the_one_before

from ingot.pipelines.tasks import LIMITS_SECONDS, MOST_ROWS, factored, run_tasks


def test_a_row_is_handed_over_before_its_task_ends(ray_local: None, tmp_path: Path) -> None:
    rows = [{"number": number} for number in range(12)]
    assert max(factored(len(rows), 1)) > 1  # some share a task
    taken = []
    for row in run_tasks(rows, partial(wait_for_the_one_before, tmp_path), workers=1):
        taken.append(row["number"])
        (tmp_path / str(row["number"])).touch()
    assert taken == list(range(12))


@pytest.mark.parametrize(("rows", "slots"), [(0, 2), (1, 2), (7, 2), (56, 2), (1000, 1), (5000, 16), (3, 9)])
def test_every_row_is_in_one_task_and_the_last_ones_are_short(rows: int, slots: int) -> None:
    sizes = factored(rows, slots)
    assert sum(sizes) == rows
    assert sizes == sorted(sizes, reverse=True)
    assert all(0 < size <= MOST_ROWS for size in sizes)
    assert all(size == 1 for size in sizes[-slots:])
    begun = 0
    for size in sizes:
        assert size == 1 or size * slots <= (rows - begun)  # all slots find as much
        begun += size


def test_many_rows_are_few_tasks() -> None:
    assert len(factored(1_000_000, 1000)) < 30_000
    assert len(factored(56, 2)) < 20


def test_ray_data_looks_again_soon(ray_local: None) -> None:
    """The setting is none of Ray's public ones: this fails where a new version no longer has it."""
    from ray.data._internal.execution.resource_manager import ResourceManager

    own = vars(ResourceManager)
    assert "GLOBAL_LIMITS_UPDATE_INTERVAL_S" in own
    list(run_tasks([{"number": 0}], lambda row: row, workers=1))
    assert own["GLOBAL_LIMITS_UPDATE_INTERVAL_S"] == LIMITS_SECONDS
