"""Texts are cut into pieces as the pattern of a scheme cuts them, here by hand: one pass over their UTF-8
bytes, no engine of regular expressions that could go back and back.

What a character is comes from the engine that `tokenizers` itself cuts with (`unicode_classes`), so that both
know the same letters of the same version of Unicode."""

from __future__ import annotations

from functools import cache
from typing import get_args

import numpy as np
import numpy.typing as npt

from ingot.pipelines.compiled import compiled
from ingot.pipelines.sections import Whitespace
from ingot.pipelines.tokenizer.scheme import Scheme
from ingot.pipelines.tokenizer.unicode_classes import LETTERS, NUMBERS, SPACES

Bytes = npt.NDArray[np.uint8]
Offsets = npt.NDArray[np.int64]
Sizes = npt.NDArray[np.uint32]

_OTHER, _LETTER, _NUMBER, _SPACE, _LINE = 0, 1, 2, 3, 4
_WORDS, _RUNS, _SINGLE = 0, 1, 2  # in the order of `Whitespace`
_CODE_POINTS = 0x110000
_ANY_LENGTH = 1 << 62


class Pieces:
    """Cuts texts as a scheme says."""

    def __init__(self, scheme: Scheme) -> None:
        self._digits = scheme.digits
        self._whitespace = get_args(Whitespace).index(scheme.whitespace)
        self._longest = scheme.longest_piece or _ANY_LENGTH
        self._classes = character_classes()

    def cut(self, data: Bytes, offsets: Offsets) -> tuple[Sizes, Offsets]:
        """The bytes of every piece of all texts, one after another, and where each text's pieces begin in
        them, with the end of the last. Text number i is `data[offsets[i]:offsets[i + 1]]`, UTF-8."""
        sizes = np.empty(int(offsets[-1] - offsets[0]), np.uint32)  # only what is written takes memory
        counts = np.zeros(len(offsets), np.int64)
        _cut(data, offsets, self._classes, self._digits, self._whitespace, self._longest, sizes, counts)
        return sizes[: counts[-1]], counts


@cache
def character_classes() -> Bytes:
    """Of each code point: letter, number, line end, other white space, or none of them."""
    classes = np.full(_CODE_POINTS, _OTHER, np.uint8)
    for ranges, number in ((LETTERS, _LETTER), (NUMBERS, _NUMBER), (SPACES, _SPACE)):
        for word in ranges.split():
            first, _, last = word.partition("-")
            classes[int(first, 16) : int(last or first, 16) + 1] = number
    classes[[10, 13]] = _LINE
    return classes


@compiled
def _cut(
    data: Bytes,
    offsets: Offsets,
    classes: Bytes,
    most_digits: int,
    whitespace: int,
    longest: int,
    sizes: Sizes,
    counts: Offsets,
) -> None:
    pieces = 0
    for document in range(len(offsets) - 1):
        position, stop = offsets[document], offsets[document + 1]
        while position < stop:
            end = _piece_end(data, position, stop, classes, most_digits, whitespace)
            while end - position > longest:  # in bytes; in characters it may be shorter
                part = position
                for _ in range(longest):
                    if part < end:
                        part += _class_at(data, part, classes)[1]
                sizes[pieces] = part - position
                pieces, position = pieces + 1, part
            if position < end:
                sizes[pieces] = end - position
                pieces, position = pieces + 1, end
        counts[document + 1] = pieces


@compiled
def _piece_end(
    data: Bytes, position: int, stop: int, classes: Bytes, most_digits: int, whitespace: int
) -> int:
    """Where the piece that begins at `position` ends: the alternatives of the pattern, in their order."""
    first, width = _class_at(data, position, classes)
    if data[position] == 39:  # an apostrophe
        end = _contraction_end(data, position + 1, stop)
        if end:
            return end
    if first == _LETTER:
        return _run_end(data, position + width, stop, classes, _LETTER)
    if first == _NUMBER:
        end, digits = position + width, 1
        while end < stop and digits < most_digits:
            found, width = _class_at(data, end, classes)
            if found != _NUMBER:
                break
            end, digits = end + width, digits + 1
        return end
    if first != _LINE:
        second, next_width = np.int64(_LINE), 0
        if position + width < stop:
            second, next_width = _class_at(data, position + width, classes)
        if second == _LETTER:
            return _run_end(data, position + width + next_width, stop, classes, _LETTER)
        if first == _OTHER or (data[position] == 32 and second == _OTHER):
            end = _run_end(data, position + width, stop, classes, _OTHER)
            while whitespace == _WORDS and end < stop and (data[end] == 10 or data[end] == 13):
                end += 1
            return end
    if whitespace == _SINGLE:
        return position + width
    # white space: up to its last line end; else all of it at the end of the text; else all but its last
    # character, which begins the next piece, unless there is no other
    end, before, last_line, characters = position, position, -1, 0
    while end < stop:
        found, width = _class_at(data, end, classes)
        if found != _SPACE and found != _LINE:
            break
        before, end, characters = end, end + width, characters + 1
        if found == _LINE:
            last_line = end
    if whitespace == _RUNS:
        return end
    if last_line >= 0:
        return last_line
    if end == stop or characters == 1:
        return end
    return before


@compiled
def _class_at(data: Bytes, position: int, classes: Bytes) -> tuple[np.int64, int]:
    """The class of a character, and how many bytes it has."""
    byte = np.int64(data[position])
    if byte < 0x80:
        return np.int64(classes[byte]), 1
    second = np.int64(data[position + 1]) & 0x3F
    if byte < 0xE0:
        return np.int64(classes[(byte & 0x1F) << 6 | second]), 2
    third = np.int64(data[position + 2]) & 0x3F
    if byte < 0xF0:
        return np.int64(classes[(byte & 0x0F) << 12 | second << 6 | third]), 3
    fourth = np.int64(data[position + 3]) & 0x3F
    return np.int64(classes[(byte & 0x07) << 18 | second << 12 | third << 6 | fourth]), 4


@compiled
def _run_end(data: Bytes, position: int, stop: int, classes: Bytes, wanted: int) -> int:
    while position < stop:
        found, width = _class_at(data, position, classes)
        if found != wanted:
            break
        position += width
    return position


@compiled
def _contraction_end(data: Bytes, position: int, stop: int) -> int:
    """The end of s, t, m, d, re, ve or ll in letters of any case, or 0. A long s (U+017F) is an s."""
    if position >= stop:
        return 0
    first = data[position] | 32
    if first == 115 or first == 116 or first == 109 or first == 100:
        return position + 1
    if position + 1 >= stop:
        return 0
    if data[position] == 0xC5 and data[position + 1] == 0xBF:
        return position + 2
    second = data[position + 1] | 32
    if (first == 114 or first == 118) and second == 101:
        return position + 2
    if first == 108 and second == 108:
        return position + 2
    return 0
