"""Joining a Ray cluster: the one RAY_ADDRESS names, or an embedded one on this machine."""

from __future__ import annotations

import logging
import os
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, TextIO, cast

from ingot.errors import IngotError, UsageError
from ingot.pipelines.ray_lifetime import end_ray, our_signals
from ingot.pipelines.scratch import scratch_folder
from ingot.pipelines.store import Store

# Each is read once, at Ray's start or import: quiet, no usage reports, retries of lost tasks as usual.
_QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    "RAY_DEDUP_LOGS": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_TRAIN_METRICS_ENABLED": "0",
}

# Where it is 0, Ray's servers listen on the loopback address alone. Read at the import.
_MANY_MACHINES = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"


@contextmanager
def cluster(store: Store, cpus: int | None = None) -> Iterator[str]:
    """A connection to Ray for the time of the block; gives the path of the logs. Without RAY_ADDRESS an
    embedded cluster of `cpus` CPUs (by default the machine's) is started, and stopped at the end.
    Raises UsageError where the store is a local folder and the cluster has more than one node."""
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    address = os.environ.get("RAY_ADDRESS")
    make_token_private()
    mend = "check RAY_ADDRESS, or unset it to run on this machine alone"
    if address and (silence := unreachable(address)):
        raise IngotError(f"Ray at {address}: {silence}; {mend}")
    with ExitStack() as stack:
        if not address:
            folder = stack.enter_context(scratch_folder())
            stack.enter_context(_loopback_alone())
        import ray

        stack.callback(end_ray, own=not address)
        try:
            with our_signals(held=not address):
                if address:
                    ray.init(address, log_to_driver=False, logging_level=logging.ERROR)
                else:
                    ray.init(
                        address="local",
                        _temp_dir=str(folder / "ray"),
                        num_cpus=cpus or max(2, os.cpu_count() or 2),
                        include_dashboard=False,
                        object_store_memory=200_000_000,  # data moves through the store, not Ray's objects
                        log_to_driver=False,
                        logging_level=logging.ERROR,
                    )
        except Exception as error:  # a start that times out is a plain Exception of Ray's
            said = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
            raise IngotError(f"Ray at {address or 'this machine'}: {said}; {mend}") from error
        quiet()
        refuse_unshared(store)
        logs = os.path.join(ray.get_runtime_context().worker.node.get_session_dir_path(), "logs")
        make_token_private()
        with obituaries_aside(logs):
            yield logs


@contextmanager
def _loopback_alone() -> Iterator[None]:
    """For the time of the block: a cluster of several machines that is started later must not inherit it."""
    given = os.environ.get(_MANY_MACHINES)
    os.environ.setdefault(_MANY_MACHINES, "0")
    try:
        yield
    finally:
        if given is None:
            os.environ.pop(_MANY_MACHINES, None)


def joined() -> bool:
    """Whether this process has joined a cluster. Does not import Ray, whose import reads the environment."""
    ray = sys.modules.get("ray")
    return ray is not None and bool(ray.is_initialized())


def make_token_private() -> None:
    """Ray creates the token that its clusters ask for readable by every user of the machine."""
    path = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or "~/.ray/auth_token").expanduser()
    with suppress(OSError):  # there is none, or it is someone else's
        if path.stat().st_uid == os.getuid() and path.stat().st_mode & 0o077:
            path.chmod(0o600)


def unreachable(address: str, seconds: float = 10) -> str | None:
    """Why no driver can join Ray at this address, or None where one may try: Ray itself tries for minutes.
    What is there may take `seconds` to answer."""
    if address.startswith("ray://"):
        return "a Ray Client address; name the cluster's own, HOST:6379, from a machine beside it"
    if address.startswith(("http://", "https://")):
        return f"a dashboard's address; to send a run there: ingot submit RECIPE --to {address}"
    if address in ("auto", "local"):
        return None
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal():
        return "no HOST:PORT"
    try:
        with socket.create_connection((host, int(port)), timeout=seconds) as connection:
            if os.environ.get("RAY_USE_TLS", "0") == "0" and not _speaks_grpc(connection):
                return "something answers, but it is not Ray"
    except (OSError, OverflowError) as error:
        return f"nothing answers ({error})"
    return None


def _speaks_grpc(connection: socket.socket) -> bool:
    """Whether a frame of settings comes first, as from every server of HTTP/2 (RFC 9113, section 3.4)."""
    empty_settings = bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])
    connection.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + empty_settings)
    with connection.makefile("rb") as answer:
        return answer.read(4)[3:] == empty_settings[3:4]


@contextmanager
def obituaries_aside(logs: str) -> Iterator[None]:
    """What Ray prints to the driver's standard output when a node is lost, some forty lines of its raylet's
    log, goes to a file among the logs. No setting of Ray's does it."""
    kept = sys.stdout
    with open(Path(logs, f"ingot-{os.getpid()}.out"), "a", encoding="utf-8") as log:
        sys.stdout = cast(TextIO, _WithoutRay(kept, log))
        try:
            yield
        finally:
            sys.stdout = kept


class _WithoutRay:
    """A stream but for what the thread of Ray writes that listens to its errors: that goes to `log`."""

    def __init__(self, stream: TextIO, log: TextIO) -> None:
        self._stream, self._log = stream, log

    def write(self, text: str) -> int:
        ray = threading.current_thread().name == "ray_listen_error_messages"
        return (self._log if ray else self._stream).write(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def refuse_unshared(store: Store) -> None:
    """Raises UsageError where some node of the cluster would not see the store's objects."""
    import ray

    nodes = [node for node in ray.nodes() if node["Alive"]]
    if len(nodes) > 1 and not store.shared:
        raise _unshared(store, f"the cluster has {len(nodes)} nodes, which would not see it")


def home_of(store: Store) -> str | None:
    """The only node that sees the store's objects, which is this one, or None where all do."""
    import ray

    node: str = ray.get_runtime_context().get_node_id()
    return None if store.shared else node


def refuse_elsewhere(store: Store, home: str | None) -> None:
    """Raises UsageError on a node that does not see the store's objects: one that has come since the
    cluster was joined."""
    if home is not None and home_of(store) != home:
        raise _unshared(store, "the cluster has grown by a node, which does not see it")


def _unshared(store: Store, but: str) -> UsageError:
    return UsageError(
        f"store {store.uri}: a local folder, but {but}; name one that all reach with --store s3://bucket/prefix"
    )


@contextmanager
def chatter_aside() -> Iterator[None]:
    """What Ray's core writes to this process's standard error goes to its session's logs: it takes every
    restartable actor of Ray Data for an error (https://github.com/ray-project/ray/issues/57733)."""
    import ray

    sys.stderr.flush()
    kept = os.dup(2)
    logs = Path(ray.get_runtime_context().worker.node.get_session_dir_path(), "logs")
    with open(logs / f"ingot-{os.getpid()}.err", "ab") as log:
        os.dup2(log.fileno(), 2)
    try:
        yield
    finally:
        sys.stderr.flush()
        os.dup2(kept, 2)
        os.close(kept)


def quiet() -> None:
    """Ray's chatter goes to its files; the terminal is the stages'."""
    import ray.data

    for name in ("ray", "ray.data", "ray.train", "ray.serve"):
        logging.getLogger(name).setLevel(logging.ERROR)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.enable_operator_progress_bars = False
    context.print_on_execution_start = False
