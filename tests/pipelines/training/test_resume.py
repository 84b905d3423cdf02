"""A driver that is killed with all of its cluster: the next one goes on from the store alone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from killing import kill_driver, wait_for_step

from ingot.pipelines.artifact import File
from ingot.pipelines.training.checkpoint import newest_step
from ingot.pipelines.training.log import read_log

if TYPE_CHECKING:
    from conftest import SmallTraining

    from ingot.pipelines.pipeline import Outcome

KEY, GATE = "artifacts/pretrain/driver-killed", "gates/driver"


@pytest.mark.long
@pytest.mark.timeout(600)
def test_a_killed_driver_loses_nothing_that_was_committed(
    uninterrupted: Outcome, uninterrupted_key: str, small_training: SmallTraining
) -> None:
    store = small_training.store
    section, job = small_training.section().model_dump_json(), small_training.job(GATE).to_json()
    script = Path(__file__).with_name("driver.py")
    command = [sys.executable, str(script), store.uri, KEY, section, json.dumps(job)]
    paths = [str(script.parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    first = subprocess.Popen(command, env=environment)
    assert wait_for_step(store, KEY, 10) == 10
    kill_driver(first.pid)
    first.wait()
    assert newest_step(store, KEY) == 10
    assert not store.exists(f"{KEY}/trained.json")
    store.create(GATE, b"open")
    second = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=280)
    assert second.returncode == 0, second.stderr
    # Ray's and torch's chatter goes to files; the text before training was the first driver's to show.
    begun, after, *samples, metrics = second.stdout.splitlines()
    assert begun == "  attempt 2: 2 workers go on at step 10 of 20"
    assert after.startswith("  step 20 of 20: bits per byte ")
    assert samples
    assert all("→" in sample for sample in samples)
    assert json.loads(metrics)["steps_repeated"] == 0  # as far as this call can know
    record = json.loads(store.read(f"{KEY}/trained.json"))
    assert {name: File.from_json(entry) for name, entry in record["files"].items()} == uninterrupted.files
    assert record["metrics"]["attempts"] == 2
    lines = read_log(store, KEY)
    assert [line["loss"] for line in lines] == [line["loss"] for line in read_log(store, uninterrupted_key)]
    assert [line["attempt"] for line in lines] == [1] * 10 + [2] * 10
