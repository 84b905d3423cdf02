"""However `ingot serve` ends, nothing of it is left; when one of its processes dies, those it owns do."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil
import pytest
from ports import free_port
from processes import started, wait_until
from test_serve import checkpoint  # noqa: F401

from ingot.pipelines.scratch import remove_abandoned

pytestmark = [pytest.mark.long, pytest.mark.timeout(600)]

CLIENTS = 4  # fewer than may wait
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

    def status(self, path: str) -> int:
        return httpx.get(f"http://127.0.0.1:{self.port}{path}", timeout=10).status_code

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
        remove_abandoned(root)  # as the next start does
        assert [path.name for path in root.iterdir() if path.name != "cache"] == []


def test_a_dead_engine_costs_the_requests_under_way_and_is_503_until_it_is_replaced(checkpoint, root):  # noqa: F811
    with serving(checkpoint, root) as served:
        assert forked_by_other_threads(served) == []
        ends = threading.Event()
        with ThreadPoolExecutor(CLIENTS) as pool:
            loops = [pool.submit(ask_until, served, ends) for _ in range(CLIENTS)]
            try:
                wait_until(served.answers)
                [engine] = served.find(ENGINE)
                killed = time.monotonic()
                engine.kill()
                wait_until(lambda: served.status("/health") == 503)
                fresh = ask(served)
                wait_until(served.answers, 180)
                time.sleep(1)  # for the clients to be answered again
            finally:
                ends.set()
        late = [one for loop in loops for one in loop.result() if one.ended > killed]
        counts = Counter((one.status, one.retry_after) for one in late)
        assert (fresh.status, fresh.retry_after) == (503, "2")
        assert fresh.ended - fresh.began < 5  # far less than a replica takes to start
        assert set(counts) <= {(200, None), (429, "1"), (503, "2")}
        assert all(loop.result()[-1].status == 200 for loop in loops), counts


@dataclass(frozen=True)
class Answered:
    """A request's answer and when it was asked for and came, in seconds of the monotonic clock."""

    status: int
    retry_after: str | None
    began: float
    ended: float


def ask(served: Served) -> Answered:
    """One request; the status is 0 where the connection broke."""
    body = {"model": "tiny", "prompt": "the", "max_tokens": 4, "ignore_eos": True}
    began = time.monotonic()
    try:
        answer = httpx.post(f"http://127.0.0.1:{served.port}/v1/completions", json=body, timeout=200)
        status, retry_after = answer.status_code, answer.headers.get("retry-after")
    except httpx.TransportError:
        status, retry_after = 0, None
    return Answered(status, retry_after, began, time.monotonic())


def ask_until(served: Served, ends: threading.Event) -> list[Answered]:
    """A client that sends one request after the other, sooner than Retry-After asks for."""
    answers = []
    while not ends.is_set():
        answers.append(ask(served))
        if answers[-1].status != 200:
            time.sleep(0.05)
    return answers


def forked_by_other_threads(served: Served) -> list[str]:
    """Children of the raylet that a thread other than its first has started. A worker is tied to the thread
    that started it, not to the process, so that thread must live as long as the process does."""
    [raylet] = served.find("/raylet/raylet")
    return [
        f"{task.name}: {children}"
        for task in Path(f"/proc/{raylet.pid}/task").iterdir()
        if (children := (task / "children").read_text()) and int(task.name) != raylet.pid
    ]


def listening_on_all_addresses(served: Served) -> list[str]:
    loopback = "127.0.0.1", "::1", "::ffff:127.0.0.1"
    return [
        f"{description(process)[:80]} {connection.laddr}"
        for process in [psutil.Process(served.process.pid), *served.family()]
        for connection in process.net_connections("tcp")
        if connection.status == psutil.CONN_LISTEN and connection.laddr.ip not in loopback
    ]
