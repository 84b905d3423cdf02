"""Processes end with their owner, however it ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator

import psutil
import pytest
from processes import started, wait_until

OWNER = """
import multiprocessing, os, sys, time
from multiprocessing import forkserver
from ingot.pipelines.lifetime import BoundContext

if __name__ == "__main__":
    if sys.argv[1] == "spawn":
        context = BoundContext()
    else:
        multiprocessing.set_forkserver_preload(["ingot.services.serve.fork_server"])
        context = multiprocessing.get_context("forkserver")
    process = context.Process(target=time.sleep, args=(600,))
    process.start()
    server = forkserver._forkserver._forkserver_pid or process.pid
    time.sleep(float(sys.argv[2]))
    print(server, process.pid, flush=True)
    time.sleep(600)
"""


@pytest.fixture(params=["spawn", "forkserver"])
def chain(request, tmp_path) -> Iterator[tuple[subprocess.Popen, psutil.Process, psutil.Process]]:
    """An owner, its fork server (or the process itself, where it was spawned) and a process of it."""
    (tmp_path / "owner.py").write_text(OWNER)
    command = [sys.executable, str(tmp_path / "owner.py"), request.param, "1"]
    with started(command, stdout=subprocess.PIPE, text=True) as owner:
        server, process = map(psutil.Process, map(int, owner.stdout.readline().split()))
        try:
            yield owner, server, process
        finally:
            for left in (server, process):
                if left.is_running():
                    left.kill()


@pytest.mark.parametrize("sign", [signal.SIGKILL, signal.SIGHUP, signal.SIGTERM])
def test_what_an_owner_started_ends_with_it(chain, sign):
    owner, *started_by_it = chain
    os.kill(owner.pid, sign)
    owner.wait(20)
    assert gone(started_by_it)


def test_what_a_fork_server_forked_ends_with_it(chain):
    _, server, process = chain
    server.kill()
    assert gone([process])


def test_a_process_whose_parent_has_ended_already_ends_at_once():
    code = "from ingot.pipelines.lifetime import end_with_parent as end; end(1_000_000_000); print('alive')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "")


def gone(processes: list[psutil.Process]) -> bool:
    wait_until(lambda: not any(map(runs, processes)), 20)
    return True


def runs(process: psutil.Process) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
