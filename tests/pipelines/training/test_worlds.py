"""One, two, three and four workers: the same samples in the same order, and the same losses."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from ingot.pipelines.store import LocalStore
from ingot.pipelines.training.log import read_log


@pytest.mark.long
def test_one_to_four_processes_read_the_same_samples_and_see_the_same_losses(tmp_path: Path) -> None:
    script = Path(__file__).with_name("loop_ranks.py")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, str(script), str(tmp_path)], env=environment, check=True, timeout=280)
    store = LocalStore(str(tmp_path))
    logs = {world: read_log(store, f"world-{world}") for world in (1, 2, 3, 4)}
    assert {world: len(log) for world, log in logs.items()} == dict.fromkeys(logs, 50)
    assert {line["workers"] for line in logs[4]} == {4}
    for log in logs.values():
        assert [line["samples"] for line in log] == [line["samples"] for line in logs[1]]
        assert [line["loss"] for line in log] == pytest.approx([line["loss"] for line in logs[1]], rel=1e-5)
    assert logs[1][-1]["loss"] < 0.9 * logs[1][0]["loss"]
