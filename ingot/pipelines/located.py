"""Where the files of a source are: below a folder or an S3 prefix, those that a glob names, or one file.

A glob has `*`, `?` and `[…]` within a name and `**` for folders of any depth; the folder before the first of
these is the root, and paths of documents are below it."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from fsspec.utils import glob_translate

from ingot.pipelines.sections import Files
from ingot.pipelines.store import Store, open_store

_MAGIC = re.compile(r"[*?\[]")


@dataclass(frozen=True)
class Located:
    """The store that is a source's root, and the glob of its keys, or one key; None for all of them."""

    root: Store
    glob: str | None = None
    key: str | None = None

    @property
    def wanted(self) -> Callable[[str], object] | None:
        """Whether a key is the source's, or None where all are."""
        if self.key is not None:
            return self.key.__eq__
        return re.compile(glob_translate(self.glob)).match if self.glob is not None else None

    def reaches(self, store: Store) -> bool:
        """Whether objects of `store` could be files of the source, by whatever links."""
        above, below = self.root.uri, store.uri
        if not self.root.shared and not store.shared:
            above, below = os.path.realpath(above), os.path.realpath(below)
        if self.key is not None or not f"{below}/".startswith(f"{above.rstrip('/')}/"):
            return False
        inner = below[len(above.rstrip("/")) :].strip("/")
        names, globs = inner.split("/") if inner else [], (self.glob or "**").split("/")
        if "**" in globs:
            return True
        return len(globs) > len(names) and all(map(fnmatchcase, names, globs))


def locate(source: Files, ask: bool = True) -> Located:
    """Whether a path of S3 without a glob is an object or a prefix is asked of the service, unless `ask` is
    false: then it is taken for a prefix."""
    magic = _MAGIC.search(source.path.removeprefix("s3://"))
    if magic:
        start = source.path.index(magic[0])
        folder = source.path[:start].rpartition("/")[0] or ("/" if source.path.startswith("/") else ".")
        return Located(open_store(folder), glob=source.path[:start].rpartition("/")[2] + source.path[start:])
    folder, _, name = source.path.rstrip("/").rpartition("/")
    if "://" not in source.path:
        path = Path(source.path).expanduser()
        if path.is_file():
            return Located(open_store(str(path.parent)), key=path.name)
    elif ask and name and not source.path.endswith("/") and folder != "s3:/":
        above = open_store(folder)
        if above.exists(name):
            return Located(above, key=name)
    return Located(open_store(source.path))
