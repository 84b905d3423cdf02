"""The regular files below a folder that others fill: links and special files are never followed or opened.

A symbolic link could make any file of the machine a document; opening a FIFO waits for its writer."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path

_KINDS = {
    stat.S_IFLNK: "symbolic link",
    stat.S_IFIFO: "FIFO",
    stat.S_IFSOCK: "socket",
    stat.S_IFCHR: "device",
    stat.S_IFBLK: "device",
}
HIDDEN = "hidden"


class NotRegular(OSError):
    """What was a regular file when it was listed is none any more."""


@dataclass(frozen=True)
class Skipped:
    """A file or a whole folder that is not read, and why: "hidden", or the kind of file it is."""

    key: str
    kind: str


def regular_files(
    root: Path, hidden: bool, leave_out: Callable[[str], object] = lambda name: False
) -> tuple[list[str], list[Skipped]]:
    """The sorted keys of the regular files below `root`, and what is skipped: links, special files, and
    names that begin with a dot unless `hidden`. Names for which `leave_out` is true are not there. Raises
    OSError for a folder that can't be listed."""
    keys: list[str] = []
    skipped: list[Skipped] = []
    folders = [""]
    while folders:
        below = folders.pop()
        with os.scandir(root / below) as entries:
            for entry in entries:
                key = below + entry.name
                if leave_out(entry.name):
                    continue
                if entry.name.startswith(".") and not hidden:
                    skipped.append(Skipped(key, HIDDEN))
                elif entry.is_dir(follow_symlinks=False):
                    folders.append(f"{key}/")
                elif entry.is_file(follow_symlinks=False):
                    keys.append(key)
                else:
                    kind = stat.S_IFMT(entry.stat(follow_symlinks=False).st_mode)
                    skipped.append(Skipped(key, _KINDS.get(kind, "special file")))
    return sorted(keys), sorted(skipped, key=lambda each: each.key)


def open_regular(root: Path, key: str) -> BufferedReader:
    """Opens a listed file. Raises NotRegular where it, or a folder on the way to it, has been replaced by a
    link or a special file since, and OSError. It never waits."""
    *folders, name = key.split("/")
    at = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for folder in folders:
            flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
            inner = os.open(folder, flags, dir_fd=at)
            os.close(at)
            at = inner
        found = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=at)
    finally:
        os.close(at)
    file = os.fdopen(found, "rb")
    if not stat.S_ISREG(os.fstat(found).st_mode):
        file.close()
        raise NotRegular(0, "it is not a regular file any more")
    return file
