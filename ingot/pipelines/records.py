"""Small JSON objects of the store (manifests, records, runs, model versions), read without trusting them.

Whoever can write to the store can put anything there. A reader gets an object of the shape it asked for, or
`Damaged`: never an error of the JSON parser, of Python's recursion limit or of a missing field."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from functools import cache
from typing import Any

from pydantic import ConfigDict, TypeAdapter, ValidationError

from ingot.pipelines.store import Store, StoreError

LARGEST = 64_000_000  # bytes of one such object: a manifest of 100,000 files takes some 45 MB
DEEPEST = 64  # levels of nesting
LONGEST_NAME, LONGEST_PART = 1024, 255  # bytes: a key of S3, and a name in a Linux file system
_SHA256 = re.compile(r"[0-9a-f]{64}")


class Damaged(StoreError):
    """An object is missing or its bytes are not those its name promises."""


def read_object(store: Store, key: str, /, **fields: Any) -> dict[str, Any]:
    """The JSON object stored at `key`. Each keyword names a field that must be there, and its type.
    Raises ObjectMissing, and Damaged where it is anything else."""
    return parse_object(store.read(key, 0, LARGEST + 1), f"{store.uri}/{key}", **fields)


def parse_object(text: bytes, where: str, /, **fields: Any) -> dict[str, Any]:
    """As `read_object`, of bytes that were read from `where`."""
    if len(text) > LARGEST:
        raise damaged(where, f"it is larger than {LARGEST:,} bytes")
    body = parse(text, where)
    if not isinstance(body, dict):
        raise damaged(where, f"it is a JSON {type(body).__name__}, not an object")
    check_fields(body, where, **fields)
    return body


def read_lines(store: Store, key: str, /, **fields: Any) -> list[dict[str, Any]]:
    """The JSON objects of the lines stored at `key`, with these fields. Raises ObjectMissing, Damaged."""
    where = f"{store.uri}/{key}"
    lines = store.read(key).splitlines()
    return [parse_object(line, f"{where}:{number}", **fields) for number, line in enumerate(lines, 1)]


def check_fields(body: dict[str, Any], where: str, /, **fields: Any) -> None:
    """Raises Damaged where a field is missing or of another type."""
    for name, kind in fields.items():
        if name not in body:
            raise damaged(where, f"it has no field {name!r}")
        try:
            _adapter(kind).validate_python(body[name])
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            place = ".".join([name, *map(str, first["loc"])])
            raise damaged(where, f"{place[:200]}: {first['msg']}") from None


def parse(text: bytes, where: str) -> Any:
    """The JSON value, whose nesting is bounded. Raises Damaged."""
    try:
        body = json.loads(text)
    except RecursionError:
        raise damaged(where, f"it is nested more than {DEEPEST} levels deep") from None
    except ValueError as error:  # no JSON, no UTF-8, or a number of too many digits
        raise damaged(where, f"it is no JSON: {str(error)[:200]}") from None
    level = [body]
    for _ in range(DEEPEST):
        level = [
            child
            for value in level
            if isinstance(value, dict | list)
            for child in (value.values() if isinstance(value, dict) else value)
        ]
        if not level:
            return body
    raise damaged(where, f"it is nested more than {DEEPEST} levels deep")


def damaged(where: str, why: str) -> Damaged:
    """The error for an object of the store that is not what Ingot writes there."""
    return Damaged(f"{where} was altered: {why}; delete it and run again to make it anew")


def is_sha256(text: object) -> bool:
    """Whether this is a SHA-256 as Ingot writes it, which may become a part of a key."""
    return isinstance(text, str) and _SHA256.fullmatch(text) is not None


def wrong_names(names: Iterable[object]) -> str | None:
    """Why these can't all be the file names of one artifact, or None: each becomes a path below a folder,
    so it must be relative and normalised, and no file may stand where another needs a folder."""
    there: set[str] = set()
    folders: dict[str, str] = {}
    for name in names:
        if not isinstance(name, str):
            return f"the file name {name!r} is no string"
        parts = name.split("/")
        if not name.isprintable() or "\\" in name:
            return f"the file name {name[:200]!a} has a backslash or a character that can't be printed"
        if any(part in ("", ".", "..") for part in parts):
            return f"the file name {name[:200]!r} is no relative, normalised path"
        if len(name.encode()) > LONGEST_NAME or any(len(part.encode()) > LONGEST_PART for part in parts):
            return f"the file name {name[:60]!r}… is longer than {LONGEST_NAME} bytes, {LONGEST_PART} a part"
        there.add(name)
        for end in range(1, len(parts)):
            folders["/".join(parts[:end])] = name
    both = sorted(there & folders.keys())
    return f"{both[0]!r} is a file, and the folder of {folders[both[0]]!r}" if both else None


@cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind, config=ConfigDict(strict=True))
