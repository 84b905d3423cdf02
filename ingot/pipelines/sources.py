"""Raw sources: where their files are."""

from __future__ import annotations

import sysconfig
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

from ingot.errors import IngotError, UsageError
from ingot.pipelines.formats import Record, is_unicode, records
from ingot.pipelines.sections import Files, PythonPackages
from ingot.pipelines.store import Entry, LocalStore, Store, open_store

__all__ = ["Record", "absolute", "inventory", "read_unchanged", "records"]
STANDARD_LIBRARY = "python"  # the first part of the path of a module of the standard library


def inventory(source: PythonPackages | Files, store: Store) -> list[Entry]:
    """The files of a source, sorted by path. Raises UsageError for one that has none, or that holds the
    store: what a run writes would be its own input."""
    if isinstance(source, Files):
        place = source.path
        folder = open_store(source.path)
        if f"{store.uri}/".startswith(f"{folder.uri}/"):
            raise UsageError(
                f"corpus.sources: {source.name}: {place} holds the store, {store.uri}; name a folder of "
                "texts alone, or a store elsewhere"
            )
        try:
            entries = list(folder.inventory())
        except IngotError as error:
            raise type(error)(f"corpus.sources: {source.name}: its path: {error}") from error
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
            ),
            key=lambda entry: entry.key,
        )
        place = "the installed packages"
    if not entries:
        raise UsageError(
            f"corpus.sources: {source.name}: no files below {place}; name a folder or prefix that has some"
        )
    return entries


def absolute(source: PythonPackages | Files) -> PythonPackages | Files:
    """The source with its path written out: a task's working folder is not the driver's."""
    if isinstance(source, Files):
        return source.model_copy(update={"path": open_store(source.path).uri})
    return source


def read_unchanged(source: PythonPackages | Files, entry: Entry) -> bytes:
    """The file's bytes, on whatever node this runs. Raises StoreError where they are not those listed."""
    if isinstance(source, Files):
        return open_store(source.path).read_unchanged(entry)
    package, _, key = entry.key.partition("/")
    return _folder(package).read_unchanged(Entry(key, entry.bytes, entry.content))


class PythonFolder(LocalStore):
    """The Python sources below a folder, without tests and without what else is installed beside them."""

    def list(self, prefix: str) -> Iterator[str]:
        left_out = {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__"}
        for path in sorted(self.root.rglob("*.py")):
            below = path.relative_to(self.root)
            if not left_out & set(below.parts):
                yield below.as_posix()


def _folder(package: str) -> Store:
    if package == STANDARD_LIBRARY:
        return PythonFolder(sysconfig.get_paths()["stdlib"])
    found = find_spec(package) if package.isidentifier() else None
    if found is None or not found.submodule_search_locations:
        raise UsageError(
            f"corpus.sources: no package {package!r} is installed; install it or leave it out of packages"
        )
    return PythonFolder(str(Path(found.submodule_search_locations[0])))
