"""How text is encoded, and which characters can be seen."""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterable, Iterator
from itertools import chain

from ingot.pipelines.decompression import Unreadable

MARKS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE, codecs.BOM_UTF32_BE)  # of text that has zero bytes

# White space, control and format characters, fillers and selectors: the Default_Ignorable_Code_Point property
# of Unicode and what is drawn as nothing. Written out, so that no version of Python decides what is empty.
_VISIBLE = re.compile(
    "[^\\s\\x00-\\x1f\\x7f-\\x9f\\xad\\u034f\\u061c\\u115f\\u1160\\u17b4\\u17b5\\u180b-\\u180f"
    "\\u200b-\\u200f\\u202a-\\u202e\\u2060-\\u206f\\u2800\\u3164\\ufe00-\\ufe0f\\ufeff\\uffa0\\ufff0-\\ufffb"
    "\\U0001bca0-\\U0001bca3\\U0001d173-\\U0001d17a\\U000e0000-\\U000e0fff]"
)


def is_blank(text: str) -> bool:
    """Whether nothing of it can be seen."""
    return _VISIBLE.search(text) is None


def is_unicode(text: str) -> bool:
    """Whether it has a UTF-8 form: half of a surrogate pair has none."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def utf8(chunks: Iterable[bytes], of_json: bool = False) -> Iterator[bytes]:
    """The same text in UTF-8 without a byte order mark; UTF-16 is decoded where it has one. Raises Unreadable
    for UTF-32, and for JSON in UTF-16 without a mark: JSON begins with ASCII, so a zero byte shows it."""
    iterator = iter(chunks)
    head = next(iterator, b"")
    marked = head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    if head.startswith((codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)) or (
        of_json and not marked and b"\0" in head[:4]
    ):
        raise Unreadable(
            "the file is neither UTF-8 nor UTF-16 with a byte order mark (UTF-32, or UTF-16 without one); "
            "convert it to UTF-8"
        )
    if marked:
        for text in codecs.iterdecode(chain([head], iterator), "utf-16"):
            yield text.encode()
        return
    yield head.removeprefix(codecs.BOM_UTF8)
    yield from iterator
