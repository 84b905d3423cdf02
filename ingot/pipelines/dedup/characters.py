"""What is compared of a text: its characters' classes, and the optional normalisation before."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping
from functools import cache
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow

from ingot.pipelines.columns import utf8
from ingot.pipelines.dedup.unicode_classes import SEPARATORS, WORDS

LETTER, SEPARATOR, WORD = 0, 1, 2  # what a character beyond ASCII does
_CODES = 1 << 21  # that four bytes of UTF-8 can spell


@cache
def character_classes() -> npt.NDArray[np.uint8]:
    """Of each code point beyond ASCII: part of a word, a separator, or a word of its own."""
    classes = np.full(_CODES, LETTER, np.uint8)
    for ranges, number in ((SEPARATORS, SEPARATOR), (WORDS, WORD)):
        for item in ranges.split():
            first, _, last = item.partition("-")
            classes[int(first, 16) : int(last or first, 16) + 1] = number
    return classes


def compared(
    texts: pyarrow.ChunkedArray, settings: Mapping[str, Any]
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    """The texts as they are compared: bytes, and the offsets [rows + 1] of each in them.

    settings: `normalize` ("none", "nfc" or "nfkc") and `casefold`."""
    form, casefold = settings["normalize"], settings["casefold"]
    if form == "none" and not casefold:
        return utf8(texts)
    chunks = [
        pyarrow.array((comparable(text.as_py(), form, casefold) for text in chunk), pyarrow.large_string())
        for chunk in texts.chunks
    ]
    return utf8(pyarrow.chunked_array(chunks, pyarrow.large_string()))


def comparable(text: str, form: Literal["none", "nfc", "nfkc"], casefold: bool) -> str:
    """The text in a normalisation form of Unicode, or its full case folding in that form (the Unicode
    Standard, 3.13: canonical and compatibility caseless matching). ASCII stays as it is: whatever compares
    texts folds it anyway."""
    if text.isascii():
        return text
    if form == "none":
        return text.casefold()
    composed: Literal["NFC", "NFKC"] = "NFC" if form == "nfc" else "NFKC"
    if casefold:
        text = unicodedata.normalize("NFD", text).casefold()
        if form == "nfkc":
            text = unicodedata.normalize("NFKD", text).casefold()
    return unicodedata.normalize(composed, text)
