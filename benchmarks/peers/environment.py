"""A peer's environment, made on first use from its pinned list, and a process in it that answers lines."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]


class Unavailable(Exception):
    """The peer can't be had here; says why in one line."""


def python_of(name: str) -> Path:
    """The interpreter of `.venv-peers/NAME`, which holds `requirements/peers/NAME.txt`, or Unavailable."""
    folder = ROOT / ".venv-peers" / name
    pins = (ROOT / "requirements" / "peers" / f"{name}.txt").read_text()
    python, stamp = folder / "bin" / "python", folder / "installed.txt"
    if stamp.exists() and stamp.read_text() == pins:
        return python
    print(f"{name}: installing its pinned list into {folder.relative_to(ROOT)}, once", flush=True)
    listed = folder / "wanted.txt"
    for command in (
        [sys.executable, "-m", "venv", "--clear", str(folder)],
        [str(python), "-m", "pip", "install", "--quiet", "--no-deps", "--requirement", str(listed)],
    ):
        if command[0] == str(python):
            listed.write_text(pins)
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            said = (done.stderr.strip() or done.stdout.strip() or "no word").splitlines()
            raise Unavailable(f"{name} can't be installed here: {said[-1]}")
    stamp.write_text(pins)
    return python


class Peer:
    """`benchmarks/peers/SCRIPT.py ARGUMENTS` in a process of the peer's own: a word in, a JSON object out."""

    def __init__(self, name: str, script: str, *arguments: object) -> None:
        command = [str(python_of(name)), str(HERE / f"{script}.py"), *map(str, arguments)]
        self.name = name
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    def ask(self, word: str) -> dict[str, Any]:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        try:
            self.process.stdin.write(word + "\n")
            self.process.stdin.flush()
            line = self.process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            assert self.process.stderr is not None
            said = self.process.stderr.read().strip() or "no word"
            raise Unavailable(f"{self.name} failed: {said.splitlines()[-1]}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def __enter__(self) -> Peer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.process.communicate()  # its input ends, and so does it
