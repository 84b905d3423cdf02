"""How long a service may take, and what is said meanwhile.

Timeouts of a socket bound each wait for bytes, not a whole call: a service that sends one byte a second, or
that is asked again after every silence, holds its caller for many minutes. So a call runs in a thread of its
own, and its caller waits for as long as the limits allow, saying now and then what it waits for."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from ingot.errors import IngotError

SAY_SECONDS = 5.0  # of silence until the first line; each later one comes after twice as long
RATE = 100_000  # bytes a second: a transfer that is at least this fast may take as long as it needs
_Result = TypeVar("_Result")
_said: dict[str, float] = {}  # what is waited for → when a line said so last
_saying = threading.Lock()


@dataclass(frozen=True)
class Limits:
    """Seconds. `connect` and `read` are of one try: for a connection, and for each wait for bytes. `whole`
    is of an operation with all its tries, besides what `RATE` allows for the bytes it moves."""

    connect: float
    read: float
    whole: float
    tries: int

    @staticmethod
    def of(whole: float) -> Limits:
        """The limits of an operation that may take `whole` seconds: within them it is tried several times."""
        return Limits(min(5.0, whole / 4), min(20.0, whole / 3), whole, 6 if whole >= 60 else 3)


class TooSlow(IngotError):
    """An operation took longer than its limits allow."""


class Moved:
    """How many bytes an operation has moved, counted by the thread that moves them."""

    def __init__(self, count: int = 0) -> None:
        self.count = count

    def add(self, count: int) -> None:
        self.count += count


def patiently(work: Callable[[], _Result], what: str, whole: float, moved: Moved | None = None) -> _Result:
    """What `work()` returns or raises. Says "waiting for `what` for N s" on standard error while it moves
    nothing. Raises TooSlow after `whole` seconds and what its bytes allow; `work` may then go on in its
    thread, so it must be safe to repeat."""
    moved = moved or Moved()
    ended = threading.Event()
    results: list[_Result] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            results.append(work())
        except BaseException as error:  # raised again where it is waited for
            errors.append(error)
        finally:
            ended.set()

    began = heard = time.monotonic()
    count, pause = moved.count, SAY_SECONDS
    threading.Thread(target=run, name=f"waits for {what}"[:60], daemon=True).start()
    while not ended.wait(min(pause, max(0.01, began + whole + moved.count / RATE - time.monotonic()))):
        now = time.monotonic()
        if now > began + whole + moved.count / RATE:
            raise TooSlow(f"no result after {now - began:.0f} s")
        if moved.count != count:
            count, heard, pause = moved.count, now, SAY_SECONDS
        elif now - heard >= pause:
            say_waiting(what, now - heard)
            pause *= 2
    if errors:
        raise errors[0]
    return results[0]


def say_waiting(what: str, seconds: float) -> None:
    """One line on standard error; of many threads that wait for the same thing, one says so."""
    with _saying:
        now = time.monotonic()
        if now - _said.get(what, -SAY_SECONDS) < SAY_SECONDS:
            return
        _said[what] = now
    print(f"waiting for {what} for {seconds:.0f} s", file=sys.stderr, flush=True)
