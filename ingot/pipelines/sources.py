"""Raw sources: where their files are."""

from __future__ import annotations

import os
import sysconfig
from collections.abc import Sequence
from importlib.util import find_spec
from io import BufferedReader
from pathlib import Path

from ingot.errors import IngotError, UsageError
from ingot.pipelines.characters import is_unicode
from ingot.pipelines.formats import Record, records
from ingot.pipelines.listing import Skipped
from ingot.pipelines.located import locate
from ingot.pipelines.sections import Files, PythonPackages
from ingot.pipelines.store import Entry, LocalStore, Store, open_store

__all__ = ["Record", "absolute", "inventory", "read_unchanged", "records"]
NAMED = 5  # of the files that are skipped
STANDARD_LIBRARY = "python"  # the first part of the path of a module of the standard library


def inventory(source: PythonPackages | Files, store: Store) -> tuple[list[Entry], list[Skipped]]:
    """The files of a source, sorted by path, and what is skipped. Raises UsageError for one that has none, or
    that holds the store: what a run writes would be its own input."""
    skipped: list[Skipped] = []
    if isinstance(source, Files):
        place = source.path
        check_apart(source, store)
        located = locate(source)
        try:
            found = list(located.root.inventory(source.hidden, located.wanted))
        except IngotError as error:
            raise type(error)(f"corpus.sources: {source.name}: its path: {error}") from error
        entries = [each for each in found if isinstance(each, Entry)]
        skipped = [each for each in found if isinstance(each, Skipped)]
        for entry in entries:
            if not is_unicode(entry.key):
                raise UsageError(
                    f"corpus.sources: {source.name}: the file name {entry.key!r} is not UTF-8; rename it"
                )
    else:
        entries = sorted(
            (
                Entry(f"{package}/{entry.key}", entry.bytes, entry.content)
                for package in {STANDARD_LIBRARY, *source.packages}
                for entry in _folder(package).inventory()
                if isinstance(entry, Entry)
            ),
            key=lambda entry: entry.key,
        )
        place = "the installed packages"
    if not entries:
        named = ", ".join(described(each) for each in skipped[:NAMED])
        but = f" but {len(skipped)} that are skipped: {named};" if skipped else ";"
        raise UsageError(
            f"corpus.sources: {source.name}: no files at {place}{but} name a folder or prefix that has "
            "some, or set hidden: true below the source to read names that begin with a dot"
        )
    return entries, skipped


def check_apart(source: PythonPackages | Files, store: Store) -> None:
    """Raises UsageError where the source holds the store, by whatever links: what a run writes would be its
    own input."""
    if not isinstance(source, Files):
        return
    if locate(source, ask=False).reaches(store):
        raise UsageError(
            f"corpus.sources: {source.name}: {source.path} holds the store, {store.uri}; name a folder of "
            "texts alone, or a store elsewhere"
        )


def check_there(source: PythonPackages | Files) -> None:
    """Raises UsageError where the source's folder, or file, or one of its packages is not on this machine."""
    if isinstance(source, PythonPackages):
        for package in source.packages:
            _folder(package)
    elif "://" not in source.path and not Path(locate(source).root.uri).is_dir():
        raise UsageError(f"corpus.sources: {source.name}: its path: {source.path}: no such folder or file")


def described(skipped: Skipped) -> str:
    """For a person, on one line."""
    name = os.fsencode(skipped.key).decode(errors="backslashreplace")
    return f"{name!r} ({skipped.kind})" if not name.isprintable() else f"{name} ({skipped.kind})"


def absolute(source: PythonPackages | Files) -> PythonPackages | Files:
    """The source with its root, written out, for its path: a task's working folder is not the driver's."""
    if isinstance(source, Files):
        return source.model_copy(update={"path": locate(source).root.uri})
    return source


def read_unchanged(source: PythonPackages | Files, entry: Entry) -> bytes:
    """The bytes of a file of an `absolute` source, on whatever node this runs. Raises StoreError where they
    are not those listed."""
    if isinstance(source, Files):
        return open_store(source.path).read_unchanged(entry)
    package, _, key = entry.key.partition("/")
    return _folder(package).read_unchanged(Entry(key, entry.bytes, entry.content))


class PythonFolder(LocalStore):
    """The Python sources below a folder, without tests and without what else is installed beside them."""

    def _files(self, hidden: bool) -> tuple[Sequence[str], Sequence[Skipped]]:
        left_out = {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__"}
        below = (path.relative_to(self.root) for path in sorted(self.root.rglob("*.py")) if path.is_file())
        return [path.as_posix() for path in below if not left_out & set(path.parts)], []

    def _open(self, key: str) -> BufferedReader:
        return open(self.root / key, "rb")  # installers may link to what they installed: that is trusted


def _folder(package: str) -> Store:
    if package == STANDARD_LIBRARY:
        return PythonFolder(sysconfig.get_paths()["stdlib"])
    found = find_spec(package) if package.isidentifier() else None
    if found is None or not found.submodule_search_locations:
        raise UsageError(
            f"corpus.sources: no package {package!r} is installed; install it or leave it out of packages"
        )
    return PythonFolder(str(Path(found.submodule_search_locations[0])))
