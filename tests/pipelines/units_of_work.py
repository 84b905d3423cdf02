"""Work for the tests of units, importable by worker processes; as a script, a driver that can be killed:
`python units_of_work.py STORE KEY TEMP`."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ingot.errors import UsageError
from ingot.pipelines.artifact import put_file
from ingot.pipelines.store import LocalStore, Store
from ingot.pipelines.units import Unit, Work, Workspace

SLOW_UNITS = [Unit(f"{number:02d}", {"number": number}) for number in range(12)]


def square(store: Store, body: Mapping[str, Any]) -> dict[str, Any]:
    return {"square": body["number"] ** 2}


def square_slowly(store: Store, body: Mapping[str, Any]) -> dict[str, Any]:
    time.sleep(0.4)
    file = put_file(store, str(body["number"] ** 2).encode())
    return {"square": body["number"] ** 2, "file": file.to_json()}


def unhurried(work: Work, store: Store, body: Mapping[str, Any]) -> Mapping[str, Any]:
    """Any work, and a second of rest before it."""
    time.sleep(1)
    return work(store, body)


def wait_for_the_one_before(folder: Path, row: dict[str, Any]) -> dict[str, Any]:
    """Ends once the driver has told that it has the row before."""
    number = row["number"]
    limit = time.monotonic() + 60
    while number and not (folder / str(number - 1)).exists():
        assert time.monotonic() < limit, f"row {number - 1} was not handed over"
        time.sleep(0.01)
    return {"number": number}


class Panic(BaseException):
    """As libraries in Rust raise it."""


def panic(store: Store, body: Mapping[str, Any]) -> dict[str, Any]:
    raise Panic("retry-limit-in-match over")


def die_at_first(store: Store, body: Mapping[str, Any]) -> dict[str, Any]:
    """Kills its process, unless it did so before."""
    try:
        Path(body["mark"]).touch(exist_ok=False)
    except FileExistsError:
        return {"square": body["number"] ** 2}
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("a killed process goes on")


def die_always(store: Store, body: Mapping[str, Any]) -> dict[str, Any]:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("a killed process goes on")


def complain(store: Store, body: Mapping[str, Any]) -> dict[str, Any]:
    if body["number"] == 1:
        raise UsageError("page 7 is missing; add it")
    return {}


def stumble(store: Store, body: Mapping[str, Any]) -> dict[str, Any]:
    raise ZeroDivisionError("a bug\nand more about it")


class Nothing:
    """A `Progress` that shows nothing."""

    def __getattr__(self, name: str) -> Any:
        return lambda *words, **figures: None


if __name__ == "__main__":
    import ray

    uri, key, temp = sys.argv[1:]
    ray.init(
        address="local",
        num_cpus=2,
        include_dashboard=False,
        object_store_memory=100_000_000,
        log_to_driver=False,
        _temp_dir=temp,
    )
    # the module as workers know it, not as __main__
    import units_of_work

    workspace = Workspace(LocalStore(uri), key, Nothing())
    workspace.run("slow", units_of_work.SLOW_UNITS, units_of_work.square_slowly)
