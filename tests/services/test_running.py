"""Signals that end a command."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest
from processes import started

COMMAND = """
import sys, time
from ingot.services.running import end_on_signals
end_on_signals()
try:
    print("begun", flush=True)
    time.sleep(600)
except KeyboardInterrupt:
    print("ending", flush=True)
    sys.stdin.readline()
    print("ended", flush=True)
"""


@pytest.mark.parametrize("first", [signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGHUP])
def test_a_second_signal_does_not_cut_the_end_short(first: signal.Signals, second: signal.Signals) -> None:
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with started([sys.executable, "-c", COMMAND], **pipes) as process:
        assert process.stdout.readline() == "begun\n"
        process.send_signal(first)
        assert process.stdout.readline() == "ending\n"
        process.send_signal(second)
        said, _ = process.communicate("\n", timeout=60)
        assert (said, process.returncode) == ("ended\n", 0)
