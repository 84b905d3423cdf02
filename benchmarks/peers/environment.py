"""A peer's environment, made on first use from its pinned list, and a process in it that answers lines."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]

ON_OUR_TORCH = ("litgpt",)  # get the build of torch that Ingot runs on, from its own list


class Unavailable(Exception):
    """The peer can't be had here; says why in one line."""


def python_of(name: str) -> Path:
    """The interpreter of `.venv-peers/NAME`, which holds `requirements/peers/NAME.txt`, or Unavailable."""
    folder = ROOT / ".venv-peers" / name
    requirements = ROOT / "requirements"
    pins = (requirements / "peers" / f"{name}.txt").read_text()
    python, stamp = folder / "bin" / "python", folder / "installed.txt"
    if stamp.exists() and stamp.read_text() == pins:
        return python
    print(f"{name}: installing its pinned list into {folder.relative_to(ROOT)}, once", flush=True)
    install = [str(python), "-m", "pip", "install", "--quiet", "--no-deps", "--retries", "1"]
    install += ["--require-hashes", "--requirement"]
    commands = [
        [sys.executable, "-m", "venv", "--clear", str(folder)],
        [*install, str(requirements / "peers" / f"{name}.txt")],
    ]
    if name in ON_OUR_TORCH:
        commands.append([*install, str(requirements / "torch-cpu.txt")])
    for command in commands:
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            said = (done.stderr.strip() or done.stdout.strip() or "no word").splitlines()
            raise Unavailable(f"{name} can't be installed here: {said[-1]}")
    stamp.write_text(pins)
    return python


def pinned(*names: str) -> dict[str, str]:
    """The versions that the peers' lists name."""
    found = {}
    for name in names:
        lines = (ROOT / "requirements" / "peers" / f"{name}.txt").read_text().splitlines()
        [found[name]] = (line.partition("==")[2].split()[0] for line in lines if line.startswith(f"{name}=="))
    return found


class Peer:
    """`benchmarks/peers/SCRIPT.py ARGUMENTS` in a process of its own: a word in, a JSON object out. It runs
    on the peer's interpreter, or on `python` where what it needs is installed there already."""

    def __init__(self, name: str, script: str, *arguments: object, python: str | None = None) -> None:
        command = [python or str(python_of(name)), str(HERE / f"{script}.py"), *map(str, arguments)]
        self.name = name
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    def ask(self, word: str) -> dict[str, Any]:
        self.tell(word)
        return self.hear()

    def tell(self, word: str) -> None:
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # why it ended is told where it is heard
            self.process.stdin.write(word + "\n")
            self.process.stdin.flush()

    def hear(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
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
