"""Ray clusters on this machine, behind a token: several nodes (a head without CPUs and raylets), each with a
working folder of its own, of which any may join later and be lost; or a head alone, with the dashboard that
jobs are submitted to."""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
from ports import free_port


@dataclass(frozen=True)
class Nodes:
    """`env` joins a process to the cluster; `folders`, below `folder`, are the working folders of the head
    and the raylets."""

    env: dict[str, str]
    folder: Path
    folders: list[Path]
    processes: list[subprocess.Popen[bytes]]
    temporary: Path

    def add(self, cpus: int) -> subprocess.Popen[bytes]:
        """A raylet joins."""
        return self.start(f"--address={self.env['RAY_ADDRESS']}", f"--num-cpus={cpus}")

    def start(self, *options: str) -> subprocess.Popen[bytes]:
        name = f"node{len(self.folders)}"
        self.folders.append(self.folder / name)
        self.folders[-1].mkdir()
        log = self.folder / f"{name}.log"
        common = ["--object-store-memory=100000000", "--disable-usage-stats", "--block"]
        environment = {name: value for name, value in self.env.items() if name != "RAY_ADDRESS"}
        with open(log, "wb") as output:
            node = subprocess.Popen(
                [str(Path(sys.executable).with_name("ray")), "start", *options, *common],
                cwd=self.folders[-1],
                env=environment,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        self.processes.append(node)
        _wait_until_started(node, log)
        return node

    def kill(self, node: subprocess.Popen[bytes]) -> None:
        """Ends a node and all that runs on it at once, as a power cut does."""
        top = psutil.Process(node.pid)
        for process in [top, *top.children(recursive=True)]:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        node.wait()

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
    head = ["--head", f"--port={port}", "--num-cpus=0", "--include-dashboard=false"]
    nodes = Nodes({**env, "RAY_ADDRESS": f"{address}:{port}"}, folder, [], [], temporary)
    try:
        nodes.start(*head, f"--temp-dir={temporary}")
        for _ in range(raylets):
            nodes.add(cpus)
        yield nodes
    finally:
        nodes.stop()


@dataclass(frozen=True)
class Head:
    """A head with a dashboard. `env` lets a process talk to it; `address` is the dashboard's."""

    address: str
    env: dict[str, str]
    temporary: Path  # below which Ray keeps its logs

    def log(self, name: str) -> Path:
        return self.temporary / "session_latest" / "logs" / name


@contextmanager
def ray_head(folder: Path, cpus: int, env: Mapping[str, str]) -> Iterator[Head]:
    """Starts a head whose processes have `env` and this test's environment, with this Python as `python` and
    without its import path."""
    port, dashboard = free_port(), free_port()
    token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    binaries = Path(sys.executable).parent
    whole = {**os.environ, **env, **token, "PATH": f"{binaries}{os.pathsep}{os.environ['PATH']}"}
    whole.pop("PYTHONPATH", None)
    temporary = Path(f"/tmp/rh{os.getpid()}")  # Ray's sockets need a short path
    options = [
        *("--head", f"--port={port}", f"--num-cpus={cpus}", f"--temp-dir={temporary}"),
        *(f"--dashboard-port={dashboard}", f"--dashboard-agent-listen-port={free_port()}"),
        *("--object-store-memory=100000000", "--disable-usage-stats", "--block"),
    ]
    log = folder / "head.log"
    with open(log, "wb") as output:
        head = subprocess.Popen(
            [str(binaries / "ray"), "start", *options],
            cwd=folder,
            env=whole,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    try:
        _wait_until_started(head, log)
        yield Head(f"http://127.0.0.1:{dashboard}", token, temporary)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(head.pid, signal.SIGKILL)
        head.wait()
        shutil.rmtree(temporary, ignore_errors=True)


def _wait_until_started(node: subprocess.Popen[bytes], log: Path) -> None:
    end = time.monotonic() + 90
    while time.monotonic() < end:
        assert node.poll() is None, log.read_text()
        if "Ray runtime started" in log.read_text():
            return
        time.sleep(0.2)
    raise AssertionError(log.read_text())
