"""The peak memory of a command's own process and of the largest of its Ray workers, sampled while it runs."""

from __future__ import annotations

import re
import subprocess
import threading
from collections.abc import Sequence
from pathlib import Path

import psutil

EVERY = 0.2  # seconds


def watched(command: Sequence[str], **settings: object) -> tuple[int, float, float, str]:
    """Runs the command: its exit status, the peaks in MB of its own process and of the largest worker, and
    what it said. Memory is the proportional set size: a page that several share counts in parts."""
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        **settings,  # type: ignore[call-overload]
    )
    peaks = {"driver": 0, "worker": 0}
    ended = threading.Event()

    def sample() -> None:
        while not ended.wait(EVERY):
            try:
                below = psutil.Process(process.pid).children(recursive=True)
            except psutil.Error:
                return
            peaks["driver"] = max(peaks["driver"], memory(process.pid))
            workers = [memory(child.pid) for child in below if is_worker(child.pid)]
            peaks["worker"] = max(peaks["worker"], *workers, 0)

    thread = threading.Thread(target=sample)
    thread.start()
    said, _ = process.communicate()
    ended.set()
    thread.join()
    return process.returncode, peaks["driver"] / 1e6, peaks["worker"] / 1e6, said


def is_worker(pid: int) -> bool:
    """Ray names its workers' processes after what they do."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().startswith(b"ray::")
    except OSError:
        return False


def memory(pid: int) -> int:
    """The proportional set size in bytes, or where that isn't told the resident one; 0 for one that ended."""
    try:
        told = re.search(r"^Pss:\s+(\d+) kB", Path(f"/proc/{pid}/smaps_rollup").read_text(), re.MULTILINE)
        return int(told[1]) * 1024 if told else psutil.Process(pid).memory_info().rss
    except (OSError, psutil.Error):
        return 0
