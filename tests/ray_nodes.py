"""A Ray cluster of several nodes on this machine: a head without CPUs and raylets, each with a working
folder of its own, all behind a token."""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from ports import free_port


@dataclass(frozen=True)
class Nodes:
    """`env` joins a process to the cluster; `folders` are the working folders of the head and the raylets."""

    env: dict[str, str]
    folders: list[Path]
    processes: list[subprocess.Popen[bytes]]
    temporary: Path

    def stop(self) -> None:
        """Ends every node as a power cut does, and takes its disk away."""
        for process in reversed(self.processes):
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        for folder in (*self.folders, self.temporary):
            shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def ray_nodes(folder: Path, raylets: int, cpus: int) -> Iterator[Nodes]:
    """Starts the nodes one after another."""
    from ray.util import get_node_ip_address

    port, address = free_port(), get_node_ip_address()
    env = {**os.environ, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    temporary = Path(f"/tmp/rn{os.getpid()}")  # Ray's sockets need a short path
    common = ["--object-store-memory=100000000", "--disable-usage-stats", "--block"]
    head = ["--head", f"--port={port}", "--num-cpus=0", "--include-dashboard=false"]
    parts = [[*head, f"--temp-dir={temporary}"]]
    parts += [[f"--address={address}:{port}", f"--num-cpus={cpus}"] for _ in range(raylets)]
    nodes = Nodes({**env, "RAY_ADDRESS": f"{address}:{port}"}, [], [], temporary)
    ray = str(Path(sys.executable).with_name("ray"))
    try:
        for number, options in enumerate(parts):
            nodes.folders.append(folder / f"node{number}")
            nodes.folders[-1].mkdir()
            log = folder / f"node{number}.log"
            with open(log, "wb") as output:
                node = subprocess.Popen(
                    [ray, "start", *options, *common],
                    cwd=nodes.folders[-1],
                    env=env,
                    stdout=output,
                    stderr=output,
                    start_new_session=True,
                )
            nodes.processes.append(node)
            _wait_until_started(node, log)
        yield nodes
    finally:
        nodes.stop()


def _wait_until_started(node: subprocess.Popen[bytes], log: Path) -> None:
    end = time.monotonic() + 90
    while time.monotonic() < end:
        assert node.poll() is None, log.read_text()
        if "Ray runtime started" in log.read_text():
            return
        time.sleep(0.2)
    raise AssertionError(log.read_text())
