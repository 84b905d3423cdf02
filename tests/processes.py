"""Processes that tests start: with the usual answers to signals, whatever `make test` was started with
(`nohup` and background jobs of scripts ignore SIGINT, and children inherit that), and gone at the end."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import psutil

ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def usual_signals() -> None:
    """What ends a process does so again, in the process that calls this."""
    for number in ENDING:
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, ENDING)


def usual_interrupt() -> None:
    """The same in a running Python, where an interrupt is an exception."""
    usual_signals()
    signal.signal(signal.SIGINT, signal.default_int_handler)


@contextmanager
def started(command: Sequence[str], **options: Any) -> Iterator[subprocess.Popen[Any]]:
    """The command in a process group of its own, for the time of the block; `options` are Popen's. At the end
    the group and all that descended from it are killed."""
    before: Callable[[], None] = options.pop("preexec_fn", usual_signals)
    process = subprocess.Popen(command, start_new_session=True, preexec_fn=before, **options)
    try:
        yield process
    finally:
        family: list[psutil.Process] = []
        with suppress(psutil.NoSuchProcess):
            family = psutil.Process(process.pid).children(recursive=True)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        for child in family:
            with suppress(psutil.NoSuchProcess):
                child.kill()
        process.wait()
        for stream in (process.stdout, process.stderr):
            if stream is not None:
                stream.close()


def wait_until(true: Callable[[], object], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.05)
