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
from dataclasses import dataclass, field
from pathlib import Path

import psutil
from ports import free_port


@dataclass(frozen=True)
class Nodes:
    """`env` joins a process to the cluster; `folders`, below `folder`, are the working folders of the head
    and the raylets, `temporary` those that Ray keeps its logs and sockets in."""

    env: dict[str, str]
    folder: Path
    folders: list[Path] = field(default_factory=list)
    temporary: list[Path] = field(default_factory=list)
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def add(self, cpus: int) -> subprocess.Popen[bytes]:
        """A raylet joins."""
        [node] = self.join(1, cpus)
        return node

    def join(self, raylets: int, cpus: int) -> list[subprocess.Popen[bytes]]:
        """So many raylets join at once."""
        options = [f"--address={self.env['RAY_ADDRESS']}", f"--num-cpus={cpus}"]
        return self.started([self.begin(*options) for _ in range(raylets)])

    def begin(self, *options: str) -> tuple[subprocess.Popen[bytes], Path]:
        """A node that is about to start, and its log."""
        name = f"node{len(self.folders)}"
        self.folders.append(self.folder / name)
        self.folders[-1].mkdir()
        self.temporary.append(
            Path(f"/tmp/rn{os.getpid()}-{len(self.temporary)}")
        )  # sockets need a short path
        log = self.folder / f"{name}.log"
        common = [
            *(f"--temp-dir={self.temporary[-1]}", "--object-store-memory=100000000"),
            *("--include-log-monitor=false", "--disable-usage-stats", "--block"),
        ]
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
        return node, log

    def started(self, begun: list[tuple[subprocess.Popen[bytes], Path]]) -> list[subprocess.Popen[bytes]]:
        for node, log in begun:
            _wait_until_started(node, log)
        return [node for node, _ in begun]

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
        for folder in (*self.folders, *self.temporary):
            shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def ray_nodes(folder: Path, raylets: int, cpus: int) -> Iterator[Nodes]:
    """Starts a head, and then the raylets."""
    from ray.util import get_node_ip_address

    port, address = free_port(), get_node_ip_address()
    env = {**os.environ, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    head = ["--head", f"--port={port}", "--num-cpus=0", "--include-dashboard=false"]
    nodes = Nodes({**env, "RAY_ADDRESS": f"{address}:{port}"}, folder)
    try:
        nodes.started([nodes.begin(*head)])
        nodes.join(raylets, cpus)
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
