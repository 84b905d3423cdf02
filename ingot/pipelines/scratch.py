"""A temporary folder that lasts as long as the process which made it, for what its processes leave behind.

Ray's sessions, multiprocessing and vLLM leave files in the temporary folder when they are killed. Each run
and endpoint gives them a folder of its own: removed at the end, and where the process was killed, removed
when the next one starts. The owner holds a lock on a file in it, which the kernel releases however the owner
ends."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PREFIX = "ingot-"
_UNLOCKED = ".ingot-new-"  # until the lock is held
_LONGEST = 40  # characters: below it come 65 of a session's socket, whose path may have 107 (unix(7))


@contextmanager
def scratch_folder() -> Iterator[Path]:
    """The folder, named by TMPDIR in this process's environment for the time of the block. After an exception
    other than an interrupt it stays until the next start, for the logs that the error names."""
    root = _root()
    remove_abandoned(root)
    new = Path(tempfile.mkdtemp(prefix=_UNLOCKED, dir=root))
    lock = os.open(new / "owner", os.O_CREAT | os.O_WRONLY, 0o600)
    fcntl.flock(lock, fcntl.LOCK_EX)
    folder = new.rename(root / new.name.replace(_UNLOCKED, PREFIX, 1))
    kept = {name: os.environ.get(name) for name in ("TMPDIR", "TORCHINDUCTOR_CACHE_DIR")}
    # torch keeps compiled code below TMPDIR, to be found again by the next process
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", f"{tempfile.gettempdir()}/torchinductor_{os.getuid()}")
    os.environ["TMPDIR"] = str(folder)
    failed = False
    try:
        yield folder
    except Exception:
        failed = True
        raise
    finally:
        if not failed:
            _remove(folder)
        for name, value in kept.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        os.close(lock)


def remove_abandoned(root: Path) -> None:
    """Removes the folders below `root` whose owners have ended."""
    for folder in root.glob(f"{PREFIX}*"):
        try:
            if folder.is_symlink() or folder.stat().st_uid != os.getuid():
                continue
            lock = os.open(folder / "owner", os.O_WRONLY)
        except OSError:
            continue  # not one of ours, or removed by another process meanwhile
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _remove(folder)
        except BlockingIOError:
            pass
        finally:
            os.close(lock)


def _remove(folder: Path) -> None:
    """The file with the lock goes last: a folder that could not be removed whole is tried again."""
    for path in folder.iterdir():
        if path.name == "owner":
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
    if [path.name for path in folder.iterdir()] == ["owner"]:
        shutil.rmtree(folder, ignore_errors=True)


def _root() -> Path:
    """The machine's temporary folder, or /tmp where the paths of Ray's sockets below it would be too long."""
    root = Path(tempfile.gettempdir())
    return root if len(str(root)) + len("/ingot-12345678/") <= _LONGEST else Path("/tmp")
