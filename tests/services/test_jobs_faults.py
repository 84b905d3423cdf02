"""A dashboard that is silent, odd or forgetful ends in one clear message, within the limits."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from ingot.errors import IngotError
from ingot.pipelines import patience
from ingot.services.jobs import api
from ingot.services.jobs.api import JobForgotten, Jobs

GOOD = json.dumps({"version": "4", "ray_version": "2.50.0", "ray_commit": "x"}).encode()
ENDED = threading.Event()


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    monkeypatch.setattr(api, "PATIENCE_SECONDS", 3)
    monkeypatch.setattr(patience, "SAY_SECONDS", 0.2)
    patience._said.clear()
    ENDED.clear()
    yield
    ENDED.set()


@contextmanager
def dashboard(version: bytes, job: tuple[int, bytes] | None) -> Iterator[str]:
    """Answers the question for its version, and that for a job: silently where `job` is None."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path != "/api/version" and job is None:
                ENDED.wait(20)
                return
            status, body = (200, version) if self.path == "/api/version" or job is None else job
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        ENDED.set()
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.mark.parametrize(
    "version",
    [
        b"",
        b"[]",
        b"null",
        b"3",
        b"<html>",
        b"[" * 100_000,
        b'{"ray_version": null}',
        b'{"ray_version": 2}',
        b'{"ray_version": "new"}',
        b'{"ray_version": ["2.1.0"]}',
    ],
)
def test_an_odd_version_is_no_dashboard(version: bytes) -> None:
    with (
        dashboard(version, None) as to,
        pytest.raises(IngotError, match="it is no Ray dashboard; check --to"),
    ):
        Jobs(to, 1)


def test_a_dashboard_that_falls_silent_ends_within_the_limit() -> None:
    with dashboard(GOOD, None) as to:
        jobs, began = Jobs(to, 0.5), time.monotonic()
        with pytest.raises(IngotError, match=r"no answer .*; check --to"):
            jobs.list()
        assert time.monotonic() - began < 10


def test_a_head_that_is_lost_is_waited_for_aloud_and_then_named(capfd: pytest.CaptureFixture[str]) -> None:
    with dashboard(GOOD, None) as to:
        jobs = Jobs(to, 0.5)
        with pytest.raises(IngotError, match=r"run-1: its cluster has not answered .* stays in the store"):
            jobs._get_patiently("run-1")
    assert f"waiting for the dashboard {to} for " in capfd.readouterr().err


def test_a_head_that_forgot_the_job_is_not_waited_for() -> None:
    with dashboard(GOOD, (404, b"Job run-1 does not exist")) as to:
        jobs, began = Jobs(to, 2), time.monotonic()
        with pytest.raises(JobForgotten, match=r"does not know job run-1: .*submit the run again"):
            jobs._get_patiently("run-1")
        assert time.monotonic() - began < 2
