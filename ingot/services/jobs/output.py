"""What an attempt prints, kept in the store: `runs/<name>/<attempt>/output/NNNNNN.txt`, one piece after the
other, so that it can be read when the cluster that ran it is gone."""

from __future__ import annotations

import atexit
import sys
import threading
import time
from contextlib import suppress
from typing import Any, TextIO

from ingot.errors import UsageError
from ingot.pipelines.runs import Attempt, attempts_of
from ingot.pipelines.store import Store, StoreError

# Seconds between two pieces: soon while a run is young, and for long runs a fiftieth of their age, as every
# piece is one more key to list. A kill costs the store what was printed since the last piece.
SOONEST, LATEST, SHARE = 5.0, 300.0, 1 / 50


def keep_output(attempt: Attempt) -> None:
    """From here to its end, what this process prints goes into the store too."""
    output = _Output(attempt)
    sys.stdout, sys.stderr = _Both(sys.stdout, output), _Both(sys.stderr, output)
    threading.Thread(target=output.put_now_and_then, daemon=True).start()
    atexit.register(output.put)  # after the last words, whatever they are


def kept_output(store: Store, job: str) -> str:
    """What the attempt RUN-ATTEMPT, or the newest of RUN that left something, printed. Raises UsageError."""
    run, _, number = job.rpartition("-")
    attempts = [int(number)] if run and number.isdecimal() and attempts_of(store, run) else []
    if not attempts:
        run, attempts = job, sorted(attempts_of(store, job), reverse=True)
    for number_ in attempts:
        keys = list(store.list(_prefix(Attempt(store, run, number_))))
        if keys:
            return b"".join(store.read(key) for key in keys).decode()
    raise UsageError(f"store {store.uri}: keeps no output of {job}; see what runs it has: ingot runs list")


class _Output:
    """The pieces of one attempt. Both streams share them, in the order of printing."""

    def __init__(self, attempt: Attempt) -> None:
        self.attempt, self.began, self.pieces = attempt, time.monotonic(), 0
        self.waiting: list[str] = []
        self.printing, self.putting = threading.Lock(), threading.Lock()

    def print(self, text: str) -> None:
        with self.printing:
            self.waiting.append(text)

    def put_now_and_then(self) -> None:
        while True:
            time.sleep(min(LATEST, max(SOONEST, SHARE * (time.monotonic() - self.began))))
            self.put()

    def put(self) -> None:
        """Stores what waits; what can't be stored goes on waiting."""
        with self.putting, suppress(StoreError):
            with self.printing:
                parts = list(self.waiting)
            if parts:
                key = f"{_prefix(self.attempt)}{self.pieces:06d}.txt"
                self.attempt.store.create(key, "".join(parts).encode())
                self.pieces += 1
                with self.printing:
                    del self.waiting[: len(parts)]  # more may have been printed meanwhile


class _Both:
    """A stream of this process whose text goes into an output too."""

    def __init__(self, stream: TextIO, output: _Output) -> None:
        self._stream, self._output = stream, output

    def write(self, text: str) -> int:
        count = self._stream.write(text)
        self._output.print(text)
        return count

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _prefix(attempt: Attempt) -> str:
    return f"{attempt.key}/output/"
