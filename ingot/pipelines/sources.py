"""Raw sources: where their files are, and how a file becomes records."""

from __future__ import annotations

import gzip
import io
import json
import sysconfig
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ingot.errors import IngotError, UsageError
from ingot.pipelines.sections import Files, PythonPackages
from ingot.pipelines.store import Entry, LocalStore, Store, open_store

STANDARD_LIBRARY = "python"  # the first part of the path of a module of the standard library


@dataclass(frozen=True)
class Record:
    """One record of a file: a document's text, or why it is none."""

    number: int
    text: str = ""
    url: str | None = None
    metadata: str | None = None
    bad: str | None = None


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
            if not _is_unicode(entry.key):
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


def records(source: PythonPackages | Files, path: str, data: bytes) -> Iterator[Record]:
    """The records of a file: one for a text, one for each line of JSON lines, one for each row of Parquet."""
    plain = path.removesuffix(".gz").removesuffix(".zst")
    if plain.endswith(".parquet"):
        return _parquet(source, data)
    if plain.endswith((".jsonl", ".ndjson")):
        return _json_lines(source, path, data)
    return _text(path, data)


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


def _text(path: str, data: bytes) -> Iterator[Record]:
    try:
        with _opened(path, data) as file:
            yield Record(0, text=file.read().decode("utf-8"))
    except UnicodeDecodeError as error:
        yield Record(0, bad=f"not UTF-8 at byte {error.start}")
    except _UNREADABLE as error:
        yield Record(0, bad=_broken(error))


def _json_lines(source: PythonPackages | Files, path: str, data: bytes) -> Iterator[Record]:
    assert isinstance(source, Files)
    number = 0
    try:
        with _opened(path, data) as file:
            for line in file:
                if line.strip():
                    yield _json_record(source, number, line)
                number += 1
    except _UNREADABLE as error:
        yield Record(number, bad=f"{_broken(error)}, after {number} records")


def _json_record(source: Files, number: int, line: bytes) -> Record:
    try:
        body = json.loads(line)
    except json.JSONDecodeError as error:
        return Record(number, bad=f"line {number + 1} is not JSON: {error.msg} at column {error.colno}")
    except (ValueError, RecursionError) as error:  # a UnicodeDecodeError is a ValueError
        return Record(number, bad=f"line {number + 1} is not JSON in UTF-8: {error}")
    if not isinstance(body, dict):
        return Record(number, bad=f"line {number + 1} is no JSON object")
    return _fields(source, number, body)


def _parquet(source: PythonPackages | Files, data: bytes) -> Iterator[Record]:
    import pyarrow
    import pyarrow.parquet

    assert isinstance(source, Files)
    number = 0
    try:
        for batch in pyarrow.parquet.ParquetFile(io.BytesIO(data)).iter_batches(batch_size=1000):
            for row in batch.to_pylist():
                yield _fields(source, number, row)
                number += 1
    except (pyarrow.ArrowException, OSError, ValueError, OverflowError) as error:  # or a date out of range
        yield Record(number, bad=f"not a readable Parquet file: {str(error).splitlines()[0]}")


def _fields(source: Files, number: int, body: Mapping[str, Any]) -> Record:
    text = body.get(source.text)
    if not isinstance(text, str):
        there = (
            ", ".join(sorted(name for name, value in body.items() if isinstance(value, str))[:9]) or "none"
        )
        return Record(
            number,
            bad=f"record {number} has no text field {source.text!r}; fields with text: {there}; "
            "name one with text: below the source",
        )
    found = body.get(source.url)
    url = found if isinstance(found, str) else None
    if not _is_unicode(text) or not _is_unicode(url or ""):
        return Record(number, bad=f"record {number} holds half of a surrogate pair")
    rest = {name: value for name, value in body.items() if name not in (source.text, source.url)}
    try:
        metadata = json.dumps(rest, sort_keys=True, default=str) if rest else None
    except RecursionError:
        return Record(number, bad=f"record {number} is nested too deeply")
    return Record(number, text, url, metadata)


def _is_unicode(text: str) -> bool:
    """Whether it has a UTF-8 form: half of a surrogate pair has none."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _opened(path: str, data: bytes) -> io.BufferedIOBase:
    if path.endswith(".gz"):
        return gzip.GzipFile(fileobj=io.BytesIO(data))
    if path.endswith(".zst"):
        import pyarrow

        # zstandard's own reader takes a truncated file for a short one
        return io.BufferedReader(pyarrow.CompressedInputStream(pyarrow.py_buffer(data), "zstd"))
    return io.BytesIO(data)


_UNREADABLE = (EOFError, OSError, zlib.error)  # the bytes are in memory: only what is in them can be wrong


def _broken(error: Exception) -> str:
    if isinstance(error, EOFError) or str(error).startswith("Truncated"):
        return "the compressed file is truncated"
    return f"not a readable archive: {error}"
