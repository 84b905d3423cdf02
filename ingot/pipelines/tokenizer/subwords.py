"""From pieces of text to token ids, by BPE or WordPiece: those of `tokenizers` for the same file.

BPE joins the pair of tokens that was learned first before all others and of equal ones the leftmost.
WordPiece takes the longest token that the piece begins with, then the longest that the rest begins with: a
walk down a trie of the tokens' bytes, no deeper than the longest token. Most pieces of a text were seen
before, so a table keeps what each became.

These stand in one file because numba's cache asks only whether a kernel's own file has changed; cutting, in
`pieces`, is called from Python alone."""

from __future__ import annotations

import json
import threading
from typing import Any

import numpy as np
import numpy.typing as npt

from ingot.pipelines.compiled import compiled
from ingot.pipelines.tokenizer.pieces import Bytes, Offsets, Sizes
from ingot.pipelines.tokenizer.scheme import Scheme

Ids = npt.NDArray[np.uint32]
Keys = npt.NDArray[np.uint64]

_SLOTS = 1 << 19  # of the table of pieces; half of them are filled at most
_LONGEST = 64  # bytes of a piece that is kept
_ARENA = 1 << 22  # bytes, and ids, of all that are kept
_SHORT = 128  # bytes of a piece whose best pair is looked for from end to end
_NEVER = np.int64(1 << 62)  # the rank of a pair that was not learned, and no node of the trie
_NO_TOKEN = np.int64(-1)
_EMPTY = np.uint64(0xFFFFFFFFFFFFFFFF)
_ROOT = 0


class Subwords:
    """The tokens that `serialized` (tokenizer.json) lists. `tokens` are the bytes of each id, empty for a
    special token."""

    def __init__(self, serialized: str, scheme: Scheme, tokens: list[bytes]) -> None:
        ids = {token: number for number, token in enumerate(tokens) if token}
        self._longest_first = scheme.algorithm == "wordpiece"
        rows = _trie(ids) if self._longest_first else _merges(json.loads(serialized)["model"])
        self._bytes = np.array([ids[bytes([byte])] for byte in range(256)], np.int64)
        self._keys, self._links = _linked(np.array(rows, np.int64).reshape(-1, 4))
        self._table = (
            np.full(_SLOTS, -1, np.int32),
            np.zeros((_SLOTS // 2, 4), np.int64),  # of each piece: its bytes' and its ids' places and numbers
            np.zeros(_SLOTS // 2, np.uint64),
            np.zeros(_ARENA, np.uint8),
            np.zeros(_ARENA, np.uint32),
            np.zeros(3, np.int64),  # pieces, bytes and ids that are kept
        )
        self._lock = threading.Lock()

    def encode(self, data: Bytes, offsets: Offsets, sizes: Sizes, counts: Offsets) -> tuple[Ids, Offsets]:
        """The ids of all texts one after another, and where each text's begin (with the end of the last).
        The texts and their pieces are as `Pieces.cut` takes and gives them."""
        ids = np.empty(int(offsets[-1] - offsets[0]), np.uint32)  # only what is written takes memory
        places = np.zeros(len(offsets), np.int64)
        with self._lock:
            _encode(
                data,
                offsets,
                sizes,
                counts,
                self._longest_first,
                self._bytes,
                self._keys,
                self._links,
                *self._table,
                ids,
                places,
            )
        return ids[: places[-1]], places


def _merges(model: dict[str, Any]) -> list[tuple[int, int, int, int]]:
    """Two tokens, when the pair was learned, and the token it becomes."""
    ids = model["vocab"]
    pairs = (merge.split(" ") if isinstance(merge, str) else merge for merge in model["merges"])
    return [(ids[a], ids[b], rank, ids[a + b]) for rank, (a, b) in enumerate(pairs)]


def _trie(ids: dict[bytes, int]) -> list[tuple[int, int, int, int]]:
    """A node, a byte, the node it leads to, and the token that ends there."""
    nodes = {b"": _ROOT}
    for token in ids:
        for end in range(1, len(token) + 1):
            nodes.setdefault(token[:end], len(nodes))
    return [
        (nodes[begin[:-1]], begin[-1], node, ids.get(begin, int(_NO_TOKEN)))
        for begin, node in nodes.items()
        if begin
    ]


def _linked(rows: Offsets) -> tuple[Keys, Offsets]:
    """Open addressing: the first two numbers of each row as a key, and the other two."""
    size = 1 << max(4, (2 * len(rows)).bit_length())
    keys, links = np.full(size, _EMPTY, np.uint64), np.zeros((size, 2), np.int64)
    _fill(rows, keys, links)
    return keys, links


@compiled
def _encode(
    data: Bytes,
    offsets: Offsets,
    sizes: Sizes,
    counts: Offsets,
    longest_first: bool,
    byte_ids: Offsets,
    keys: Keys,
    links: Offsets,
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
        position = offsets[document]
        for index in range(counts[document], counts[document + 1]):
            end = position + np.int64(sizes[index])
            kept = end - position <= _LONGEST
            piece, slot, hashed = np.int64(-1), np.int64(0), np.uint64(0)
            if kept:
                hashed = _hash(data, position, end)
                piece, slot = _find(data, position, end, hashed, slots, pieces, hashes, kept_bytes)
            if piece >= 0:
                start = pieces[piece, 2]
                for place in range(pieces[piece, 3]):
                    ids[count] = kept_ids[start + place]
                    count += 1
                position = end
                continue
            if longest_first:
                made = _match(data, position, end, keys, links, ids[count:])
            else:
                made = _merge(data, position, end, byte_ids, keys, links, symbols, ranks, ids[count:])
            if kept:
                if filled[0] == _SLOTS // 2 or max(filled[1], filled[2]) + _LONGEST > _ARENA:
                    slots[:] = -1
                    filled[:] = 0
                    slot = np.int64(hashed & np.uint64(_SLOTS - 1))
                number = filled[0]
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
def _find(
    data: Bytes,
    position: int,
    end: int,
    hashed: np.uint64,
    slots: npt.NDArray[np.int32],
    pieces: Offsets,
    hashes: npt.NDArray[np.uint64],
    kept_bytes: Bytes,
) -> tuple[np.int64, np.int64]:
    """The piece's number in the table, or -1, and its slot, or the one it can have."""
    slot = np.int64(hashed & np.uint64(_SLOTS - 1))
    while slots[slot] >= 0:
        piece = np.int64(slots[slot])
        if hashes[piece] == hashed and pieces[piece, 1] == end - position:
            start, place = pieces[piece, 0], 0
            while place < end - position and kept_bytes[start + place] == data[position + place]:
                place += 1
            if place == end - position:
                return piece, slot
        slot = (slot + 1) & (_SLOTS - 1)
    return np.int64(-1), slot


@compiled
def _hash(data: Bytes, position: int, end: int) -> np.uint64:
    """FNV-1a (Fowler, Noll, Vo), its upper half folded into the lower."""
    found = np.uint64(0xCBF29CE484222325)
    for place in range(position, end):
        found = (found ^ np.uint64(data[place])) * np.uint64(0x100000001B3)
    return found ^ found >> np.uint64(32)


@compiled
def _match(data: Bytes, start: int, end: int, keys: Keys, links: Offsets, ids: Ids) -> int:
    """Writes the ids of a piece, the longest first token and so on, and returns their number."""
    made, position = 0, start
    while position < end:
        node, place = np.int64(_ROOT), position
        best, after = _NO_TOKEN, position + 1  # every byte is a token
        while place < end:
            node, token = _link(node, data[place], keys, links)
            if node == _NEVER:
                break
            place += 1
            if token != _NO_TOKEN:
                best, after = token, place
        ids[made] = best
        made, position = made + 1, after
    return made


@compiled
def _merge(
    data: Bytes,
    start: int,
    end: int,
    byte_ids: Offsets,
    keys: Keys,
    links: Offsets,
    symbols: Offsets,
    ranks: Offsets,
    ids: Ids,
) -> int:
    """Writes the ids of a piece and returns their number."""
    count = end - start
    if count > _SHORT:
        return _merge_long(data, start, end, byte_ids, keys, links, ids)
    for place in range(count):
        symbols[place] = byte_ids[data[start + place]]
    for place in range(count - 1):
        ranks[place] = _link(symbols[place], symbols[place + 1], keys, links)[0]
    while count > 1:
        best, place = _NEVER, -1
        for at in range(count - 1):
            if ranks[at] < best:
                best, place = ranks[at], at
        if place < 0:
            break
        symbols[place] = _link(symbols[place], symbols[place + 1], keys, links)[1]
        count -= 1
        for at in range(place + 1, count):
            symbols[at] = symbols[at + 1]
            ranks[at - 1] = ranks[at]
        if place > 0:
            ranks[place - 1] = _link(symbols[place - 1], symbols[place], keys, links)[0]
        if place + 1 < count:
            ranks[place] = _link(symbols[place], symbols[place + 1], keys, links)[0]
    for place in range(count):
        ids[place] = symbols[place]
    return count


@compiled
def _merge_long(
    data: Bytes,
    start: int,
    end: int,
    byte_ids: Offsets,
    keys: Keys,
    links: Offsets,
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
        ranks[place] = _link(symbols[place], symbols[place + 1], keys, links)[0]
        if ranks[place] != _NEVER:
            size = _push(heap, size, ranks[place], place)
    while size:
        top = heap[0]
        size = _pop(heap, size)
        rank, at = np.int64(top >> np.uint64(32)), np.int64(top & np.uint64(0xFFFFFFFF))
        if ranks[at] != rank:
            continue  # one of the two was merged since
        gone = after[at]
        symbols[at] = _link(symbols[at], symbols[gone], keys, links)[1]
        ranks[gone], symbols[gone] = _NEVER, -1
        after[at] = after[gone]
        if after[at] < count:
            before[after[at]] = at
        for left in (before[at], at):
            if left < 0:
                continue
            ranks[left] = _NEVER
            if after[left] < count:
                ranks[left] = _link(symbols[left], symbols[after[left]], keys, links)[0]
                if ranks[left] != _NEVER:
                    size = _push(heap, size, ranks[left], left)
    made, place = 0, 0
    while place < count:
        ids[made] = symbols[place]
        made, place = made + 1, after[place]
    return made


@compiled
def _push(heap: Keys, size: int, rank: Any, place: Any) -> int:
    key = np.uint64(rank) << np.uint64(32) | np.uint64(place)
    at = size
    while at > 0 and heap[(at - 1) >> 1] > key:
        heap[at] = heap[(at - 1) >> 1]
        at = (at - 1) >> 1
    heap[at] = key
    return size + 1


@compiled
def _pop(heap: Keys, size: int) -> int:
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
def _link(left: Any, right: Any, keys: Keys, links: Offsets) -> tuple[np.int64, np.int64]:
    """What is kept of the pair: of BPE when it was learned and the id it becomes, of WordPiece the node that
    the byte leads to and its id."""
    key = np.uint64(left) << np.uint64(32) | np.uint64(right)
    slot = np.int64(_mixed(key) & np.uint64(len(keys) - 1))
    while keys[slot] != key:
        if keys[slot] == _EMPTY:
            return _NEVER, _NO_TOKEN
        slot = (slot + 1) & (len(keys) - 1)
    return links[slot, 0], links[slot, 1]


@compiled
def _fill(rows: Offsets, keys: Keys, links: Offsets) -> None:
    for row in range(len(rows)):
        key = np.uint64(rows[row, 0]) << np.uint64(32) | np.uint64(rows[row, 1])
        slot = np.int64(_mixed(key) & np.uint64(len(keys) - 1))
        while keys[slot] != _EMPTY and keys[slot] != key:
            slot = (slot + 1) & (len(keys) - 1)
        keys[slot] = key
        links[slot, 0], links[slot, 1] = rows[row, 2], rows[row, 3]


@compiled
def _mixed(key: np.uint64) -> np.uint64:
    found = (key ^ key >> np.uint64(29)) * np.uint64(0x9E3779B97F4A7C15)
    return found ^ found >> np.uint64(32)
