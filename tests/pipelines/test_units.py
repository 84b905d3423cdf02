"""A unit of work is done once and recorded, whoever dies on the way."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import units_of_work as work

from ingot.errors import IngotError, UsageError
from ingot.pipelines import tasks
from ingot.pipelines.artifact import Piece
from ingot.pipelines.cluster import home_of, refuse_elsewhere
from ingot.pipelines.store import LocalStore
from ingot.pipelines.units import TaskFailed, Unit, Workspace

KEY = "artifacts/stage/0123"
UNITS = [Unit(f"{number:02d}", {"number": number}) for number in range(5)]


@pytest.fixture
def workspace(tmp_path: Path, ray_local: None, recorder: Any) -> Workspace:
    return Workspace(LocalStore(str(tmp_path / "store")), KEY, recorder)


def squares(records: list[dict[str, Any]]) -> list[int]:
    return [record["square"] for record in records]


def test_every_unit_leaves_a_record(workspace: Workspace, recorder: Any) -> None:
    records = workspace.run("step", UNITS, work.square)
    assert squares(records) == [0, 1, 4, 9, 16]
    keys = list(workspace.store.list(f"{KEY}/units/step/"))
    assert keys == [f"{KEY}/units/step/{unit.name}.json" for unit in UNITS]
    assert [json.loads(workspace.store.read(key)) for key in keys] == records
    assert recorder.told[0] == ("step", "step", 5)
    assert sum(count for kind, count in recorder.told[1:] if kind == "advance") == 5


def test_a_unit_with_a_record_is_not_done_again(workspace: Workspace) -> None:
    before = workspace.run("step", UNITS[:3], work.square)
    after = workspace.run("step", UNITS, work.square)
    assert after[:3] == before  # where and when they ran included
    # a record is believed: what stands there is what the unit made
    workspace.store.create(f"{KEY}/units/other/02.json", json.dumps({"square": -1}).encode())
    assert squares(workspace.run("other", UNITS, work.square)) == [0, 1, -1, 9, 16]


def test_shared_work_is_found_by_another_artifact_and_done_again_where_its_objects_are_gone(
    workspace: Workspace,
) -> None:
    bodies = [{"number": number} for number in range(4)]
    before = workspace.run_shared("stage", "put", bodies, work.square_slowly)
    other = replace(workspace, key="artifacts/stage/4567")
    assert other.run_shared("stage", "put", bodies[::-1], work.square_slowly) == before[::-1]
    assert len(list(workspace.store.list("shared/stage/units/put/"))) == 4
    for piece in before[2]["file"]["pieces"]:
        workspace.store.delete(Piece(**piece).key)
    again = other.run_shared("stage", "put", bodies, work.square_slowly)
    assert again[:2] + again[3:] == before[:2] + before[3:]
    assert again[2]["file"] == before[2]["file"]
    assert workspace.store.read(Piece(**before[2]["file"]["pieces"][0]).key) == b"4"


def test_records_come_in_the_order_asked_for(workspace: Workspace) -> None:
    assert squares(workspace.run("step", UNITS[::-1], work.square)) == [16, 9, 4, 1, 0]
    assert workspace.run("none", [], work.square) == []


def test_a_killed_worker_is_replaced_and_the_result_is_the_same(workspace: Workspace, tmp_path: Path) -> None:
    marked = [
        Unit(unit.name, {**unit.body, "mark": str(tmp_path / f"killed-{unit.name}")}) for unit in UNITS[:3]
    ]
    records = workspace.run("step", marked, work.die_at_first)
    assert squares(records) == [0, 1, 4]
    assert len(list(tmp_path.glob("killed-*"))) == 3


def test_a_unit_that_always_kills_its_worker_ends_the_run(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tasks, "RETRIES", 1)
    with pytest.raises(IngotError, match=r"the worker of a unit died 2 times.*workers=1"):
        workspace.run("step", UNITS[:1], work.die_always)


def test_a_person_s_error_in_a_task_is_one_clean_message(workspace: Workspace) -> None:
    with pytest.raises(IngotError) as caught:
        workspace.run("step", UNITS, work.complain)
    assert str(caught.value) == "page 7 is missing; add it"
    assert not workspace.store.exists(f"{KEY}/units/step/01.json")


def test_a_bug_in_a_task_is_told_with_its_place(workspace: Workspace) -> None:
    with pytest.raises(TaskFailed) as caught:
        workspace.run("step", UNITS[:1], work.stumble)
    assert str(caught.value).startswith("ZeroDivisionError: a bug (units_of_work.py:")
    assert f"{KEY}/units/step/00.json" in str(caught.value)
    assert "in stumble" in "".join(caught.value.__notes__)


def test_a_panic_in_a_library_is_told_too(workspace: Workspace) -> None:
    with pytest.raises(TaskFailed, match=r"^Panic: retry-limit-in-match over .* at .*/00.json"):
        workspace.run("step", UNITS[:1], work.panic)


def test_a_node_that_does_not_see_the_store_is_refused(workspace: Workspace) -> None:
    with pytest.raises(UsageError, match="the cluster has grown by a node, which does not see it"):
        refuse_elsewhere(workspace.store, home="another-node")
    refuse_elsewhere(workspace.store, home_of(workspace.store))


def test_the_store_failing_in_a_task_is_one_clean_message(workspace: Workspace, tmp_path: Path) -> None:
    (tmp_path / "store" / KEY / "units").mkdir(parents=True)
    (tmp_path / "store" / KEY / "units" / "step").touch()  # a file where the records' folder should be
    with pytest.raises(IngotError, match=r"can't write .*00\.json"):
        workspace.run("step", UNITS[:1], work.square)


@pytest.mark.long
def test_after_the_driver_is_killed_the_same_call_goes_on(workspace: Workspace) -> None:
    prefix = f"{KEY}/units/slow/"
    temp = tempfile.mkdtemp(prefix="r", dir="/tmp")  # Ray's sockets need a short path
    command = [sys.executable, work.__file__, workspace.store.uri, KEY, temp]
    driver = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    end = time.monotonic() + 120
    while len(list(workspace.store.list(prefix))) < 3:
        assert driver.poll() is None, "the driver ended too early"
        assert time.monotonic() < end, "the driver did not get far enough"
        time.sleep(0.02)
    driver.kill()
    assert driver.wait() == -signal.SIGKILL
    time.sleep(1)  # what was under way may still end
    before = {key: workspace.store.read(key) for key in workspace.store.list(prefix)}
    assert 3 <= len(before) < len(work.SLOW_UNITS)
    records = workspace.run("slow", work.SLOW_UNITS, work.square_slowly)
    assert squares(records) == [number**2 for number in range(12)]
    for key, text in before.items():
        assert workspace.store.read(key) == text
    shutil.rmtree(temp, ignore_errors=True)
