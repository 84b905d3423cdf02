"""Byte-level BPE, from the UTF-8 bytes of a column of texts to token ids, without a Python object per text.

A text is cut into pieces as GPT-4's pattern cuts it (`tokenizer.pattern`), here by hand: one pass, no engine
of regular expressions that could go back and back. Each piece's bytes are merged, the pair that was learned
first before all others and of equal ones the leftmost. Most pieces of a text were seen before, so a table
keeps what each became. The ids are those of `tokenizers` for the same file.

What a character is comes from the engine that `tokenizers` itself cuts with (`unicode_classes`), so that both
know the same letters of the same version of Unicode."""

from __future__ import annotations

import json
import threading
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

from ingot.pipelines.compiled import compiled
from ingot.pipelines.unicode_classes import LETTERS, NUMBERS, SPACES

Bytes = npt.NDArray[np.uint8]
Ids = npt.NDArray[np.uint32]
Offsets = npt.NDArray[np.int64]

_OTHER, _LETTER, _NUMBER, _SPACE, _LINE = 0, 1, 2, 3, 4
_CODE_POINTS = 0x110000
_SLOTS = 1 << 19  # of the table of pieces; half of them are filled at most
_LONGEST = 64  # bytes of a piece that is kept
_ARENA = 1 << 22  # bytes, and ids, of all that are kept
_SHORT = 128  # bytes of a piece whose best pair is looked for from end to end
_NEVER = np.int64(1 << 62)  # the rank of a pair that was not learned
_EMPTY = np.uint64(0xFFFFFFFFFFFFFFFF)


class ByteLevelBpe:
    """An encoder for the tokenizer that `serialized` (tokenizer.json) describes. `tokens` are the bytes of
    each id, empty for a special token; a piece has at most `digits` of a number."""

    def __init__(self, serialized: str, tokens: list[bytes], digits: int) -> None:
        self._digits = digits
        ids = {token: number for number, token in enumerate(tokens) if token}
        body = json.loads(serialized)["model"]
        letters = body["vocab"]
        merges = [(letters[a], letters[b], letters[a + b]) for a, b in map(_pair, body["merges"])]
        self._bytes = np.array([ids[bytes([byte])] for byte in range(256)], np.int64)
        self._pairs, self._merges = _pair_table(np.array(merges, np.int64).reshape(-1, 3))
        self._classes = character_classes()
        self._table = (
            np.full(_SLOTS, -1, np.int32),
            np.zeros((_SLOTS // 2, 4), np.int64),  # of each piece: its bytes' and its ids' places and numbers
            np.zeros(_SLOTS // 2, np.uint64),
            np.zeros(_ARENA, np.uint8),
            np.zeros(_ARENA, np.uint32),
            np.zeros(3, np.int64),  # pieces, bytes and ids that are kept
        )
        self._lock = threading.Lock()

    def encode(self, data: Bytes, offsets: Offsets) -> tuple[Ids, Offsets]:
        """The ids of all texts one after another, and where each text's begin (with the end of the last).
        Text number i is `data[offsets[i]:offsets[i + 1]]`, UTF-8."""
        ids = np.empty(int(offsets[-1] - offsets[0]), np.uint32)  # only what is written takes memory
        places = np.zeros(len(offsets), np.int64)
        with self._lock:
            _encode(
                data,
                offsets,
                self._classes,
                self._digits,
                self._bytes,
                self._pairs,
                self._merges,
                *self._table,
                ids,
                places,
            )
        return ids[: places[-1]], places


def _pair(merge: Any) -> tuple[str, str]:
    left, right = merge.split(" ") if isinstance(merge, str) else merge
    return left, right


def _pair_table(merges: Offsets) -> tuple[npt.NDArray[np.uint64], Offsets]:
    """Open addressing: the keys, and of each the rank and the id it becomes."""
    size = 1 << max(4, (2 * len(merges)).bit_length())
    keys, values = np.full(size, _EMPTY, np.uint64), np.zeros((size, 2), np.int64)
    _fill_pairs(merges, keys, values)
    return keys, values


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
def _encode(
    data: Bytes,
    offsets: Offsets,
    classes: Bytes,
    most_digits: int,
    byte_ids: Offsets,
    pairs: npt.NDArray[np.uint64],
    merges: Offsets,
    slots: npt.NDArray[np.int32],
    pieces: Offsets,
    hashes: npt.NDArray[np.uint64],
    kept_bytes: Bytes,
    kept_ids: Ids,
    filled: Offsets,
    ids: Ids,
    places: Offsets,
) -> None:
    symbols, ranks = np.empty(_SHORT, np.int64), np.empty(_SHORT, np.int64)
    count = 0
    for document in range(len(offsets) - 1):
        position, stop = offsets[document], offsets[document + 1]
        while position < stop:
            end = _piece_end(data, position, stop, classes, most_digits)
            if end - position > _LONGEST:
                count += _merge(data, position, end, byte_ids, pairs, merges, symbols, ranks, ids[count:])
                position = end
                continue
            hashed = _hash(data, position, end)
            slot = np.int64(hashed & np.uint64(_SLOTS - 1))
            piece = slots[slot]
            while piece >= 0:
                if hashes[piece] == hashed and pieces[piece, 1] == end - position:
                    start, same = pieces[piece, 0], True
                    for place in range(end - position):
                        if kept_bytes[start + place] != data[position + place]:
                            same = False
                            break
                    if same:
                        break
                slot = (slot + 1) & (_SLOTS - 1)
                piece = slots[slot]
            if piece >= 0:
                start = pieces[piece, 2]
                for place in range(pieces[piece, 3]):
                    ids[count] = kept_ids[start + place]
                    count += 1
            else:
                made = _merge(data, position, end, byte_ids, pairs, merges, symbols, ranks, ids[count:])
                number = filled[0]
                if number == _SLOTS // 2 or max(filled[1], filled[2]) + _LONGEST > _ARENA:
                    slots[:] = -1
                    filled[:] = 0
                    number, slot = 0, np.int64(hashed & np.uint64(_SLOTS - 1))
                slots[slot], hashes[number] = number, hashed
                pieces[number, 0], pieces[number, 1] = filled[1], end - position
                pieces[number, 2], pieces[number, 3] = filled[2], made
                for place in range(end - position):
                    kept_bytes[filled[1] + place] = data[position + place]
                for place in range(made):
                    kept_ids[filled[2] + place] = ids[count + place]
                filled[0], filled[1], filled[2] = number + 1, filled[1] + end - position, filled[2] + made
                count += made
            position = end
        places[document + 1] = count


@compiled
def _piece_end(data: Bytes, position: int, stop: int, classes: Bytes, most_digits: int) -> int:
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
            while end < stop and (data[end] == 10 or data[end] == 13):
                end += 1
            return end
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


@compiled
def _hash(data: Bytes, position: int, end: int) -> np.uint64:
    """FNV-1a (Fowler, Noll, Vo), its upper half folded into the lower."""
    found = np.uint64(0xCBF29CE484222325)
    for place in range(position, end):
        found = (found ^ np.uint64(data[place])) * np.uint64(0x100000001B3)
    return found ^ found >> np.uint64(32)


@compiled
def _merge(
    data: Bytes,
    start: int,
    end: int,
    byte_ids: Offsets,
    pairs: npt.NDArray[np.uint64],
    merges: Offsets,
    symbols: Offsets,
    ranks: Offsets,
    ids: Ids,
) -> int:
    """Writes the ids of a piece and returns their number."""
    count = end - start
    if count > _SHORT:
        return _merge_long(data, start, end, byte_ids, pairs, merges, ids)
    for place in range(count):
        symbols[place] = byte_ids[data[start + place]]
    for place in range(count - 1):
        ranks[place] = _rank(symbols[place], symbols[place + 1], pairs, merges)[0]
    while count > 1:
        best, place = _NEVER, -1
        for at in range(count - 1):
            if ranks[at] < best:
                best, place = ranks[at], at
        if place < 0:
            break
        symbols[place] = _rank(symbols[place], symbols[place + 1], pairs, merges)[1]
        count -= 1
        for at in range(place + 1, count):
            symbols[at] = symbols[at + 1]
            ranks[at - 1] = ranks[at]
        if place > 0:
            ranks[place - 1] = _rank(symbols[place - 1], symbols[place], pairs, merges)[0]
        if place + 1 < count:
            ranks[place] = _rank(symbols[place], symbols[place + 1], pairs, merges)[0]
    for place in range(count):
        ids[place] = symbols[place]
    return count


@compiled
def _merge_long(
    data: Bytes,
    start: int,
    end: int,
    byte_ids: Offsets,
    pairs: npt.NDArray[np.uint64],
    merges: Offsets,
    ids: Ids,
) -> int:
    """As `_merge`, with a heap of the pairs: n log n for a piece of a million letters."""
    count = end - start
    symbols, ranks = np.empty(count, np.int64), np.full(count, _NEVER)
    after, before = np.empty(count, np.int64), np.empty(count, np.int64)
    heap = np.empty(3 * count, np.uint64)  # rank, then place
    size = 0
    for place in range(count):
        symbols[place] = byte_ids[data[start + place]]
        after[place], before[place] = place + 1, place - 1
    for place in range(count - 1):
        ranks[place] = _rank(symbols[place], symbols[place + 1], pairs, merges)[0]
        if ranks[place] != _NEVER:
            size = _push(heap, size, ranks[place], place)
    while size:
        top = heap[0]
        size = _pop(heap, size)
        rank, at = np.int64(top >> np.uint64(32)), np.int64(top & np.uint64(0xFFFFFFFF))
        if ranks[at] != rank:
            continue  # one of the two was merged since
        gone = after[at]
        symbols[at] = _rank(symbols[at], symbols[gone], pairs, merges)[1]
        ranks[gone], symbols[gone] = _NEVER, -1
        after[at] = after[gone]
        if after[at] < count:
            before[after[at]] = at
        for left in (before[at], at):
            if left < 0:
                continue
            ranks[left] = _NEVER
            if after[left] < count:
                ranks[left] = _rank(symbols[left], symbols[after[left]], pairs, merges)[0]
                if ranks[left] != _NEVER:
                    size = _push(heap, size, ranks[left], left)
    made, place = 0, 0
    while place < count:
        ids[made] = symbols[place]
        made, place = made + 1, after[place]
    return made


@compiled
def _push(heap: npt.NDArray[np.uint64], size: int, rank: Any, place: Any) -> int:
    key = np.uint64(rank) << np.uint64(32) | np.uint64(place)
    at = size
    while at > 0 and heap[(at - 1) >> 1] > key:
        heap[at] = heap[(at - 1) >> 1]
        at = (at - 1) >> 1
    heap[at] = key
    return size + 1


@compiled
def _pop(heap: npt.NDArray[np.uint64], size: int) -> int:
    size -= 1
    key, at = heap[size], 0
    while 2 * at + 1 < size:
        child = 2 * at + 1
        if child + 1 < size and heap[child + 1] < heap[child]:
            child += 1
        if heap[child] >= key:
            break
        heap[at] = heap[child]
        at = child
    heap[at] = key
    return size


@compiled
def _rank(left: int, right: int, pairs: npt.NDArray[np.uint64], merges: Offsets) -> tuple[np.int64, np.int64]:
    """When the pair was learned, and the id it becomes."""
    key = np.uint64(left) << np.uint64(32) | np.uint64(right)
    slot = np.int64(_mixed(key) & np.uint64(len(pairs) - 1))
    while pairs[slot] != key:
        if pairs[slot] == _EMPTY:
            return _NEVER, np.int64(-1)
        slot = (slot + 1) & (len(pairs) - 1)
    return merges[slot, 0], merges[slot, 1]


@compiled
def _fill_pairs(merges: Offsets, pairs: npt.NDArray[np.uint64], values: Offsets) -> None:
    for rank in range(len(merges)):
        key = np.uint64(merges[rank, 0]) << np.uint64(32) | np.uint64(merges[rank, 1])
        slot = np.int64(_mixed(key) & np.uint64(len(pairs) - 1))
        while pairs[slot] != _EMPTY and pairs[slot] != key:
            slot = (slot + 1) & (len(pairs) - 1)
        pairs[slot] = key
        values[slot, 0], values[slot, 1] = rank, merges[rank, 2]


@compiled
def _mixed(key: np.uint64) -> np.uint64:
    found = (key ^ key >> np.uint64(29)) * np.uint64(0x9E3779B97F4A7C15)
    return found ^ found >> np.uint64(32)
