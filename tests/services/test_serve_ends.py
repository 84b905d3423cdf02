"""However `ingot serve` ends, nothing of it is left; when one of its processes dies, those it owns do."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
from ports import free_port
from processes import started, wait_until
from test_serve import checkpoint  # noqa: F401

pytestmark = [pytest.mark.long, pytest.mark.timeout(600)]

REPLICA, ENGINE, FORK_SERVER = "ServeReplica", "EngineCore", "multiprocessing.forkserver"


@dataclass(frozen=True)
class Served:
    """A running `ingot serve`."""

    process: subprocess.Popen[str]
    port: int
    banner: str
    root: Path  # the temporary folder that it was given

    def family(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children(recursive=True)

    def find(self, what: str) -> list[psutil.Process]:
        return [process for process in self.family() if what in description(process)]

    def answers(self) -> bool:
        body = json.dumps({"model": "tiny", "prompt": "the", "max_tokens": 1}).encode()
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}/v1/completions", body, {"content-type": "application/json"}
        )
        try:
            with urllib.request.urlopen(request, timeout=10) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False


def description(process: psutil.Process) -> str:
    try:
        return " ".join([process.name(), *process.cmdline()])
    except (psutil.NoSuchProcess, psutil.ZombieProcess):
        return ""


@contextmanager
def serving(checkpoint, root: Path, **options) -> Iterator[Served]:  # noqa: F811
    port = free_port()
    command = [sys.executable, "-m", "ingot.services.cli", "serve", "tiny", "--store", checkpoint.store.uri]
    environment = {**os.environ, "TMPDIR": str(root), "INGOT_CACHE": str(root / "cache")}
    with started(
        [*command, "--port", str(port), "--context", "128", "--queue", "7"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment,
        **options,
    ) as process:
        said = []
        for line in process.stdout:
            said.append(line)
            if "answers at" in line:
                break
        else:
            raise AssertionError("".join(said))
        yield Served(process, port, line, root)


@pytest.fixture
def root() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="t", dir="/tmp", ignore_cleanup_errors=True) as folder:
        yield Path(folder)


def gone(processes: list[psutil.Process]) -> list[str]:
    """What of them still runs after 90 s: where Ray's head is killed, its two agents wait a minute for it."""
    _, alive = psutil.wait_procs(processes, timeout=90)
    return [description(one) for one in alive if one.status() != psutil.STATUS_ZOMBIE]


@pytest.mark.parametrize("sign", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_all_of_it(checkpoint, root, sign):  # noqa: F811
    with serving(checkpoint, root) as served:
        assert "interrupt to stop" in served.banner
        family = served.family()
        assert served.find(ENGINE)
        if sign == signal.SIGHUP:  # as a terminal that closes: to every process of the group
            os.killpg(served.process.pid, sign)
        else:
            served.process.send_signal(sign)
        assert served.process.wait(60) == 0
        assert gone(family) == []
        assert [path.name for path in root.iterdir() if path.name != "cache"] == []


def test_the_chain_dies_from_its_dead_part_downwards_and_is_replaced(checkpoint, root):  # noqa: F811
    with serving(checkpoint, root, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN)) as served:
        assert f"kill -TERM {served.process.pid}" in served.banner
        assert listening_on_all_addresses(served) == []
        for part in (ENGINE, FORK_SERVER, REPLICA):
            [dying] = served.find(part)
            below = [one for what in (ENGINE, FORK_SERVER) for one in served.find(what)]
            [replica] = served.find(REPLICA)
            dying.kill()
            assert gone([*below, replica]) == []
            wait_until(served.answers, 120)
        family = served.family()
        served.process.kill()
        served.process.wait()
        assert gone(family) == []


def listening_on_all_addresses(served: Served) -> list[str]:
    loopback = "127.0.0.1", "::1", "::ffff:127.0.0.1"
    return [
        f"{description(process)[:80]} {connection.laddr}"
        for process in [psutil.Process(served.process.pid), *served.family()]
        for connection in process.net_connections("tcp")
        if connection.status == psutil.CONN_LISTEN and connection.laddr.ip not in loopback
    ]
