"""Fields of a record by name: `a.b` is the field b of the object a, unless a field has that very name."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

NOTHING = object()  # a field that is not there; null is one that is


def field(body: Mapping[str, Any], name: str) -> Any:
    """The field's value, or NOTHING."""
    if name in body:
        return body[name]
    value: Any = body
    for part in name.split("."):
        if not isinstance(value, Mapping) or part not in value:
            return NOTHING
        value = value[part]
    return value


def without(body: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """The fields but that one; nothing is left of an object whose only field it is."""
    if name in body:
        return {other: value for other, value in body.items() if other != name}
    first, _, rest = name.partition(".")
    inner = body.get(first)
    if not rest or not isinstance(inner, Mapping) or field(inner, rest) is NOTHING:
        return body
    left = without(inner, rest)
    return {**body, first: left} if left else without(body, first)


def plain(value: object) -> str:
    """What JSON has no form for: a date, a decimal, bytes."""
    return value.decode("utf-8", "backslashreplace") if isinstance(value, bytes) else str(value)


def column_of(name: str, columns: Collection[str]) -> str:
    """The column that holds a field."""
    return name if name in columns else name.partition(".")[0]
