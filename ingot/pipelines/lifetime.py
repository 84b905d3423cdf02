"""Processes that end with the process which started them, however that one ends (Linux; elsewhere nothing is
done). The kernel sends a signal, SIGKILL by default, to a child when its parent dies: nothing is left to run
in the parent then. It does so when the thread that started the child ends: that thread must live as long as
its process.

As a module preloaded by a fork server (`multiprocessing.set_forkserver_preload`) it ties the fork server to
its owner and every process forked there to the fork server."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from multiprocessing.context import SpawnContext, SpawnProcess

_PR_SET_PDEATHSIG = 1  # <linux/prctl.h>
_LIBC = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None


def end_with_parent(parent: int | None = None, sign: signal.Signals = signal.SIGKILL) -> None:
    """Ends this process when its parent does, and at once where the parent has ended already: where it is no
    longer `parent`. By default the parent is whatever process it is now. `sign` is what the kernel sends: for
    a process that on SIGTERM cleans up, and ends, SIGTERM."""
    parent = os.getppid() if parent is None else parent
    if _LIBC is not None and _LIBC.prctl(_PR_SET_PDEATHSIG, int(sign), 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")
    if os.getppid() != parent:  # it died before the call, and the kernel will send nothing
        os._exit(1)


def tie_fork_server() -> None:
    """Ties this process, a fork server, to its owner, and all that it forks to itself."""
    end_with_parent()
    server = os.getpid()
    os.register_at_fork(after_in_child=lambda: end_with_parent(server))


class BoundProcess(SpawnProcess):
    """A spawned process that ends with its parent."""

    _parent_pid: int  # set by multiprocessing

    def run(self) -> None:
        end_with_parent(self._parent_pid)
        super().run()


class BoundContext(SpawnContext):
    """multiprocessing's `spawn`, whose processes end with their parent."""

    Process = BoundProcess
