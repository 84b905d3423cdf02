"""Cuts one text into documents, as a source's `split` says."""

from __future__ import annotations

import re
from collections.abc import Iterator

from ingot.pipelines.sections import BLANK_LINES

_END = r"(?>\r\n|\n|\r)"  # of a line; never half of \r\n
_BLANK = re.compile(rf"{_END}(?:[ \t]*{_END})+")
_SPACE = re.compile(r"\s")


def pieces(text: str, split: int | str | None) -> list[str]:
    """The documents of a text, in order: at least one. A separator belongs to none of them; a cut by size
    loses nothing."""
    if split is None:
        return [text]
    if isinstance(split, int):
        found = _sized(text, split)
    elif split == BLANK_LINES:
        found = iter(_BLANK.split(text))
    else:
        found = iter(text.split(split))
    # nothing before a first separator, or after a last one, is no document
    return [piece for piece in found if piece] or [""]


def _sized(text: str, size: int) -> Iterator[str]:
    """Pieces of at most `size` characters that end with a line where one ends in their second half, or else
    with a word."""
    start = 0
    while len(text) - start > size:
        stop, middle = start + size, start + size // 2
        line = text.rfind("\n", middle, stop)
        if line >= 0:
            stop = line + 1
        else:
            back = _SPACE.search(text[middle:stop][::-1])
            stop -= back.start() if back else 0
        yield text[start:stop]
        start = stop
    yield text[start:]
