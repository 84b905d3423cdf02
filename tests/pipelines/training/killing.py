"""Killing processes at known moments of a training."""

from __future__ import annotations

import time

import psutil

from ingot.pipelines.store import Store
from ingot.pipelines.training.checkpoint import newest_step


def wait_for_step(store: Store, key: str, step: int) -> int | None:
    """The newest committed step of a training, as soon as it is at least `step`."""
    end = time.monotonic() + 200
    while (newest_step(store, key) or 0) < step and time.monotonic() < end:
        time.sleep(0.05)
    return newest_step(store, key)


def kill(pid: int) -> None:
    """SIGKILL, and waits until the process is gone."""
    process = psutil.Process(pid)
    process.kill()
    process.wait(30)


def kill_driver(pid: int) -> None:
    """SIGKILL to a driver; waits until its Ray has followed it. (Ray's agents, which run nothing of ours,
    look for their raylet a minute longer.)"""
    driver = psutil.Process(pid)
    children = [each for each in driver.children(recursive=True) if "Agent" not in " ".join(each.cmdline())]
    driver.kill()
    _, alive = psutil.wait_procs(children, timeout=120)
    assert not alive, alive
