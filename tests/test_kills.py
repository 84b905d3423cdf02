"""A run that is killed again and again, at moments nobody chose, ends as if nothing had happened."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

KILLS = 4
RECIPE: dict[str, Any] = {
    "name": "killed",
    "corpus": {"sources": [{"source": "python-packages", "packages": ["numpy"]}], "unit_bytes": 1_000_000},
    "tokenizer": {"vocabulary": 1024, "sample_bytes": 1_000_000},
    "pretrain": {
        "model": {"width": 64, "layers": 2, "heads": 2, "kv_heads": 1, "hidden": 128, "context": 256},
        "steps": 60,
        "batch_tokens": 2048,
        "packing": "best-fit",
        "mask_documents": True,
        "mix": {"python-packages": 1},
        "learning_rate": 0.001,
        "evaluate_tokens": 8192,
        "workers": 2,
        "checkpoint_every": 5,
    },
}


@pytest.mark.long
@pytest.mark.timeout(900)
def test_a_run_killed_at_random_moments_makes_the_same_artifacts(run_ingot: Any, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(RECIPE))
    began = time.monotonic()
    whole = run_ingot("run", str(recipe), "--store", "whole", cwd=tmp_path, timeout=400)
    assert whole.returncode == 0, whole.stderr
    lasted = time.monotonic() - began

    draw = random.Random(2)
    # Well before the end, as the machine may be quicker now; every call goes on where the last one came to.
    killed = [kill_after(draw.uniform(0.1, 0.5) * lasted, recipe, tmp_path, draw) for _ in range(KILLS)]
    assert any(killed), "every kill came too late"
    last = run_ingot("run", str(recipe), "--store", "broken", cwd=tmp_path, timeout=400)
    assert last.returncode == 0, last.stderr
    undisturbed, disturbed = (stages(run_ingot, name, tmp_path) for name in ("whole", "broken"))
    assert disturbed == undisturbed
    found = [samples(run_ingot, name, tmp_path) for name in ("whole", "broken")]
    assert found[0] == found[1] != []
    # it went on, and did not begin anew: the last call found stages that the killed ones had made
    assert "already committed" in last.stdout


def kill_after(seconds: float, recipe: Path, folder: Path, draw: random.Random) -> bool:
    """Runs the recipe and, after so long, kills the driver or one of the processes below it, whatever that is
    doing. Whether there still was a run to kill."""
    command = [sys.executable, "-m", "ingot.services.cli", "run", str(recipe), "--store", "broken"]
    with open(folder / "killed.log", "ab") as log:
        run = subprocess.Popen(command, cwd=folder, stdout=log, stderr=log, start_new_session=True)
    family: list[psutil.Process] = []
    try:
        run.wait(seconds)
        return False
    except subprocess.TimeoutExpired:
        family = psutil.Process(run.pid).children(recursive=True)
        workers = [process for process in family if "ray::" in " ".join(_words(process))]
        if workers and draw.random() < 0.5:
            draw.choice(workers).kill()
            time.sleep(3)
        return True
    finally:
        if run.poll() is None:
            family += psutil.Process(run.pid).children(recursive=True)
            os.kill(run.pid, signal.SIGKILL)
        run.wait()
        # Ray's agents look for their raylet a minute longer; they run nothing of ours.
        psutil.wait_procs([each for each in family if "Agent" not in " ".join(_words(each))], timeout=60)


def _words(process: psutil.Process) -> list[str]:
    try:
        words: list[str] = process.cmdline()
    except psutil.Error:
        return []
    return words


def samples(run_ingot: Any, store: str, folder: Path) -> list[dict[str, Any]]:
    """The documents of a sample."""
    shown = run_ingot("runs", "show", "killed", "--store", store, "--sample", "7", "--json", cwd=folder)
    documents: list[dict[str, Any]] = json.loads(shown.stdout)
    return documents


def stages(run_ingot: Any, store: str, folder: Path) -> dict[str, tuple[str, str]]:
    """Stage → fingerprint and digest."""
    shown = run_ingot("runs", "show", "killed", "--store", store, "--json", cwd=folder)
    return {
        stage["stage"]: (stage["fingerprint"], stage["digest"])
        for stage in json.loads(shown.stdout)["stages"]
    }
