"""How Ray's start and end fit those of the process that joins it: its signals, and the processes of an
embedded cluster. What is private to Ray stands here."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress

import psutil

RAYLET = "raylet"  # the process below which all workers are
ENDS_WITHIN = 3  # seconds that workers and agents may take once their raylet has ended


@contextmanager
def our_signals(held: bool) -> Iterator[None]:
    """For the time in which Ray starts: it must not replace the handlers of the signals that end a command.
    `held`: a signal waits until the end of the block, as only what has started can be ended. SIGHUP is
    blocked meanwhile, and so in all that Ray starts: it goes to every process of a closed terminal, and
    without Ray nothing could be ended in order."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    waiting: list[int] = []
    ours = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    with ExitStack() as stack:
        if held:
            stack.enter_context(_without_rays_handlers())
            for number in ours:
                signal.signal(number, lambda number, frame: waiting.append(number))
            mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})
        try:
            yield
        finally:
            for number, handler in ours.items():
                signal.signal(number, handler)
            if held:
                signal.pthread_sigmask(signal.SIG_SETMASK, mask)
            if waiting:
                signal.raise_signal(waiting[0])


@contextmanager
def _without_rays_handlers() -> Iterator[None]:
    """Ray's handlers of SIGTERM leave in the middle of its start: what has started would not be ended."""
    from ray._private import utils

    kept = utils.set_sigterm_handler
    utils.set_sigterm_handler = lambda handler: None
    try:
        yield
    finally:
        utils.set_sigterm_handler = kept


def end_ray(own: bool) -> None:
    """Leaves the cluster; `own`: ends the embedded one, and returns when all below its raylet have ended. A
    worker that is just starting would make its folders again after they were removed."""
    import ray

    family = _below_raylet() if own else []
    ray.shutdown()
    _, alive = psutil.wait_procs(family, ENDS_WITHIN)
    for process in alive:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(alive, ENDS_WITHIN)


def _below_raylet() -> list[psutil.Process]:
    found: list[psutil.Process] = []
    for child in psutil.Process().children():
        with suppress(psutil.NoSuchProcess):
            if child.name() == RAYLET:
                found += child.children(recursive=True)
    return found
