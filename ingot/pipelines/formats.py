"""What format a file has, and how its bytes become records.

To add a format, write its reader, name it in `READERS` and in `sections.Format`, and take its file names out
of `_REFUSED`."""

from __future__ import annotations

import codecs
import io
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import PurePosixPath
from typing import Any

from ingot.pipelines.characters import MARKS, is_unicode, utf8
from ingot.pipelines.decompression import Truncated, Unreadable, unpacked
from ingot.pipelines.fields import NOTHING, column_of, field, plain, without
from ingot.pipelines.pieces import pieces
from ingot.pipelines.sections import Files, PythonPackages

_MAGIC = {
    b"%PDF-": "PDF",
    b"PK\x03\x04": "a ZIP archive",
    b"\x89PNG": "a PNG image",
    b"\xff\xd8\xff": "a JPEG image",
    b"GIF8": "a GIF image",
    b"WARC/": "WARC",
    b"BZh": "a bzip2 archive",
    b"\xfd7zXZ": "an xz archive",
    b"<!doctype html": "HTML",
    b"<html": "HTML",
}
_REFUSED = {
    **dict.fromkeys((".csv", ".tsv"), "CSV"),
    **dict.fromkeys((".html", ".htm", ".xhtml"), "HTML"),
    **dict.fromkeys((".warc", ".wet", ".wat"), "WARC"),
    **dict.fromkeys((".zip", ".tar", ".tgz", ".bz2", ".xz", ".7z", ".rar"), "an archive"),
    **dict.fromkeys((".png", ".jpg", ".jpeg", ".gif", ".webp"), "an image"),
    ".pdf": "PDF",
    ".arrow": "Arrow",
}
_NAMES = {".parquet": "parquet", ".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "json"}
_HEAD = 4096  # bytes of a file that are looked at to recognise its format


@dataclass(frozen=True)
class Record:
    """One record of a file: a document's text, or why it is none."""

    number: int
    text: str = ""
    url: str | None = None
    metadata: str | None = None
    bad: str | None = None
    lost_values: int = 0  # of address and metadata, that could not be read


def records(source: PythonPackages | Files, path: str, data: bytes) -> Iterator[Record]:
    """The records of a file, read as the source's `format` says; a bad one carries the reason."""
    number = 0
    try:
        limits = (source.most_unpacked, source.most_ratio) if isinstance(source, Files) else None
        head, chunks = _peeked(unpacked(path, data, limits))
        declared = source.format if isinstance(source, Files) else "text"
        name = _recognised(path, head) if declared == "auto" else declared
        for record in READERS[name](source, chunks):
            number = record.number + 1
            yield record
    except UnicodeDecodeError as error:
        yield Record(number, bad=f"not {error.encoding.upper()} at byte {error.start}")
    except Unreadable as error:
        yield Record(number, bad=f"{error}, after {number} records" if number else str(error))


def _peeked(chunks: Iterator[bytes]) -> tuple[bytes, Iterator[bytes]]:
    """The first bytes, and everything: what is wrong behind the first bytes is raised where it is read."""
    first, size = [], 0
    try:
        for chunk in chunks:
            first.append(chunk)
            size += len(chunk)
            if size >= _HEAD:
                break
    except Unreadable as error:
        if not first:
            raise
        chunks = _raising(error)
    return b"".join(first), chain([b"".join(first)], chunks)


def _raising(error: Unreadable) -> Iterator[bytes]:
    raise error
    yield b""


def _recognised(path: str, head: bytes) -> str:
    """The format's name. Raises Unreadable for one that has no reader."""
    name = PurePosixPath(path.lower())
    while name.suffix in (".gz", ".zst"):
        name = name.with_suffix("")
    if name.suffix in _NAMES:
        return _NAMES[name.suffix]
    kind = _REFUSED.get(name.suffix) or next(
        (kind for magic, kind in _MAGIC.items() if head.lstrip()[:16].lower().startswith(magic.lower())), None
    )
    if kind is None and head.startswith(b"PAR1"):
        return "parquet"
    if kind is None and b"\0" in head and not head.startswith(MARKS):
        kind = "binary"
    if kind is not None:
        raise Unreadable(
            f"the file is {kind}, which can't be read; convert it to JSON lines, Parquet or plain text, "
            "leave it out, or set format: below the source if it is something else"
        )
    first = head.removeprefix(codecs.BOM_UTF8).lstrip().partition(b"\n")[0]
    if not name.suffix and first.startswith(b"{"):
        try:
            json.loads(first)
        except (ValueError, RecursionError):
            # a line longer than what is looked at
            return "jsonl" if len(first) >= _HEAD - 1 and first.startswith(b'{"') else "text"
        return "jsonl"
    return "text"


def _text(source: PythonPackages | Files, chunks: Iterable[bytes]) -> Iterator[Record]:
    data, cut = _until_cut(utf8(chunks))
    # of a character that the cut goes through, the first bytes are dropped
    text = codecs.getincrementaldecoder("utf-8")().decode(data, final=cut is None)
    found = pieces(text, source.split if isinstance(source, Files) else None)
    for number, piece in enumerate(found):
        yield Record(number, text=piece)
    if cut is not None:
        yield Record(len(found), bad=f"{cut}, after {len(text):,} characters, which are kept")


def _until_cut(chunks: Iterable[bytes]) -> tuple[bytes, Truncated | None]:
    """All bytes, or those before the place where the file is truncated."""
    parts = []
    try:
        for chunk in chunks:
            parts.append(chunk)
    except Truncated as error:
        return b"".join(parts), error
    return b"".join(parts), None


def _json_lines(source: PythonPackages | Files, chunks: Iterable[bytes]) -> Iterator[Record]:
    for number, line in enumerate(_lines(utf8(chunks, of_json=True))):
        if line.strip():
            yield _json_record(source, number, line)


def _lines(chunks: Iterable[bytes]) -> Iterator[bytes]:
    parts: list[bytes] = []
    for chunk in chunks:
        first, *others = chunk.split(b"\n")
        parts.append(first)
        if others:
            yield b"".join(parts)
            yield from others[:-1]
            parts = [others[-1]]
    if last := b"".join(parts):
        yield last


def _json(source: PythonPackages | Files, chunks: Iterable[bytes]) -> Iterator[Record]:
    """An array of objects, one object, or JSON lines."""
    data, cut = _until_cut(utf8(chunks, of_json=True))
    try:
        body = json.loads(data)
    except (ValueError, RecursionError):
        if cut is None:
            yield from _json_lines(source, [data])
        elif not data.lstrip().startswith(b"["):
            yield from _json_lines(source, [data[: data.rfind(b"\n") + 1]])
    else:
        for number, each in enumerate(body if isinstance(body, list) else [body]):
            if isinstance(each, dict):
                yield _fields(source, number, each, f"record {number + 1}")
            else:
                yield Record(number, bad=f"record {number + 1} is no JSON object")
    if cut is not None:
        raise cut


def _json_record(source: PythonPackages | Files, number: int, line: bytes) -> Record:
    place = f"line {number + 1}"
    try:
        body = json.loads(line.decode("utf-8"))
    except json.JSONDecodeError as error:
        return Record(number, bad=f"{place} is not JSON: {error.msg} at column {error.colno}")
    except (ValueError, RecursionError) as error:  # a UnicodeDecodeError is a ValueError
        return Record(number, bad=f"{place} is not JSON in UTF-8: {error}")
    if not isinstance(body, dict):
        return Record(number, bad=f"{place} is no JSON object")
    return _fields(source, number, body, place)


def _parquet(source: PythonPackages | Files, chunks: Iterable[bytes]) -> Iterator[Record]:
    import pyarrow
    import pyarrow.parquet

    wrong = (pyarrow.ArrowException, OSError, ValueError, OverflowError)
    assert isinstance(source, Files)
    try:
        file = pyarrow.parquet.ParquetFile(io.BytesIO(b"".join(chunks)))
        groups = [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]
        names = file.schema_arrow.names
    except wrong as error:
        raise Unreadable(f"not a readable Parquet file: {_first_line(error)}") from error

    def readable(group: int, name: str) -> bool:
        try:
            file.read_row_group(group, columns=[name])
        except wrong:
            return False
        return True

    number = 0
    text = column_of(source.text, names)
    for group, rows in enumerate(groups):
        stop, reason, columns, missing = number + rows, "", None, 0
        for _ in range(2):
            try:
                skip = number - (stop - rows)
                for batch in file.iter_batches(1000, row_groups=[group], columns=columns):
                    for index in range(min(skip, batch.num_rows), batch.num_rows):
                        yield _row(source, number, batch, index, missing)
                        number += 1
                    skip = max(0, skip - batch.num_rows)
            except wrong as error:
                reason = reason or _first_line(error)
            if number == stop:
                break
            # a damaged column of metadata costs what is left of that column in the row group, and no text
            columns = [name for name in names if name == text or readable(group, name)]
            missing = len(names) - len(columns)
        for lost in range(number, stop):
            yield Record(lost, bad=f"not a readable Parquet file: row {lost}: {reason}")
        number = stop


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _row(source: Files, number: int, batch: Any, index: int, lost: int) -> Record:
    """`lost`: values of the row that are in columns which can't be read."""
    body: dict[str, Any] = {}
    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        try:
            body[name] = column[index].as_py()
        except (ValueError, OverflowError, OSError) as error:  # text that is not UTF-8, a date out of range
            if name == column_of(source.text, batch.schema.names):
                return Record(number, bad=f"record {number}: {name}: {_first_line(error)}")
            body[name], lost = None, lost + 1
    return replace(_fields(source, number, body, f"record {number}"), lost_values=lost)


def _fields(source: PythonPackages | Files, number: int, body: Mapping[str, Any], place: str) -> Record:
    assert isinstance(source, Files)
    text = field(body, source.text)
    if text is None:
        return Record(number)  # a null is an empty text
    if isinstance(text, bytes):
        try:
            text = text.decode("utf-8")
        except UnicodeDecodeError as error:
            return Record(number, bad=f"{place}: {source.text}: not UTF-8 at byte {error.start}")
    if not isinstance(text, str):
        there = (
            ", ".join(sorted(name for name, value in body.items() if isinstance(value, str))[:9]) or "none"
        )
        return Record(
            number,
            bad=f"{place} has no text field {source.text!r}; fields with text: {there}; "
            "name one with text: below the source".encode("utf-8", "backslashreplace").decode(),
        )
    found = field(body, source.url)
    url = found if isinstance(found, str) else None
    for name, value in ((source.text, text), (source.url, url or "")):
        if not is_unicode(value):
            return Record(number, bad=f"{place} holds half of a surrogate pair in its field {name!r}")
    if source.metadata is None:
        rest = without(without(body, source.text), source.url)
    else:
        values = ((name, field(body, name)) for name in source.metadata)
        rest = {name: value for name, value in values if value is not NOTHING}
    try:
        # in ASCII: half of a surrogate pair stays an escape, which Parquet can hold and JSON reads back
        metadata = json.dumps(rest, sort_keys=True, default=plain) if rest else None
    except RecursionError:
        return Record(number, bad=f"{place} is nested too deeply")
    return Record(number, text, url, metadata)


Reader = Callable[[PythonPackages | Files, Iterable[bytes]], Iterator[Record]]
READERS: dict[str, Reader] = {"text": _text, "jsonl": _json_lines, "json": _json, "parquet": _parquet}
