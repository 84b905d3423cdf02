"""From UTF-8 bytes to content keys, shingles and bands, without a Python object per document.

*Normalised content*: ASCII letters in lower case, each run of ASCII whitespace one space, none at the ends.

*Words*: runs of letters, marks, digits and underscores; punctuation, symbols, spaces and control characters
of all scripts separate. A character of a script written without spaces is a word of its own. Which character
is what, `characters` says. Equal normalised contents have equal words.

*Shingles*: the hashes of all runs of n words, as a sorted set. A text of fewer than n words is one shingle;
one without any word has none, and can only be an exact copy.

Text is taken eight bytes at a time: what a byte does is a bit in a mask of 64, and a word is hashed as whole
integers. A byte at a time, the branch guessed wrong at the end of every word cost most of all. On a core of
an EPYC 7003, for source code at 256 permutations, in ns a byte of text: words and shingles 1.3 (before 3.4),
sorting 0.95, minima 0.75 (before 1.2), bands 0.03; the content's key 1.0 (before 3.1).

These stand in one file because numba's cache asks only whether a kernel's own file has changed: a kernel
would go on with the old code of another file's function."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from numba import types
from numba.extending import intrinsic

from ingot.pipelines.compiled import compiled
from ingot.pipelines.dedup.characters import LETTER, SEPARATOR, WORD

Bytes = npt.NDArray[np.uint8]
Hashes = npt.NDArray[np.uint64]
Minima = npt.NDArray[np.uint32]
Counts = npt.NDArray[np.int64]

U8, U32, U64 = np.uint8, np.uint32, np.uint64

_CONTENT = np.arange(256, dtype=U8)  # a byte of the normalised content: ASCII in lower case, whitespace as 32
_CONTENT[65:91] += U8(32)
_CONTENT[9:14] = 32

_BLOCK = 64  # bytes whose masks are one integer
_PADDING = 72  # bytes that may be read behind a text: a block, and a word of eight
_LOW_BYTES = np.array([(1 << 8 * count) - 1 for count in range(9)], U64)  # of the first `count` bytes
_LOW_BITS, _HIGH_BITS = U64(0x7F7F7F7F7F7F7F7F), U64(0x8080808080808080)
_GATHER = U64(0x0002040810204081)  # times the high bits of eight bytes: they are the top byte

_ROLLING = U64(0x9E3779B97F4A7C15)  # the base of the rolling hash: odd, so that no power of it is 0
_MURMUR_1, _MURMUR_2 = U64(0x87C37B91114253D5), U64(0x4CF5AD432745937F)

_LINEAR_SORT = 1 << 22  # the most values whose sort may take twice their memory: 64 MB


@intrinsic
def _load64(typing: Any, data: Any, position: Any) -> Any:
    """The little-endian integer of the eight bytes from `position` on, wherever they lie."""

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        array = context.make_array(signature.args[0])(context, builder, arguments[0])
        word = context.get_value_type(types.uint64).as_pointer()
        return builder.load(builder.bitcast(builder.gep(array.data, [arguments[1]]), word), align=1)

    return types.uint64(data, types.intp), code


@intrinsic
def _lowest_bit(typing: Any, mask: Any) -> Any:
    """The number of the lowest bit that is set; 64 where none is."""

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.cttz(arguments[0], context.get_constant(types.boolean, False))

    return types.int64(types.uint64), code


@compiled
def content_keys(data: Bytes, offsets: Counts, keys: Hashes) -> None:
    """Fills `keys` [documents, 2] with the 128-bit hash of each document's normalised content."""
    content = np.empty(_longest(offsets) + _PADDING, U8)
    for document in range(len(offsets) - 1):
        length = _normalise(data[offsets[document] : offsets[document + 1]], content)
        keys[document, 0], keys[document, 1] = _murmur128(content, length)


@compiled
def sign(
    data: Bytes,
    offsets: Counts,
    wanted: npt.NDArray[np.bool_],
    classes: Bytes,
    ngram: int,
    multipliers: Minima,
    addends: Minima,
    bands: int,
    band_hashes: Hashes,
    shingles: Hashes,
    counts: Counts,
) -> int:
    """Writes the shingles of the wanted documents one after another into `shingles`, which must hold
    `capacity(offsets)`, how many each has into `counts`, and of each that has any the bands of its MinHash
    signature into `band_hashes` [documents, bands]. Returns the number of shingles. `classes` are those of
    `character_classes`.

    Permutation i of a shingle's upper half x is (multipliers[i] x + addends[i]) mod 2^32, multipliers odd
    (linear permutations: Broder et al., Min-wise independent permutations, 1998): 32 bits, so that a vector
    instruction does eight or more.
    Bands as in Leskovec, Rajaraman, Ullman, Mining of Massive Datasets, 3.4."""
    longest = _longest(offsets)
    folded = np.empty(longest + _PADDING, U8)
    scratch = np.empty(min(longest // 2 + 1, _LINEAR_SORT), U64)
    positions = np.empty(4 * len(scratch) + 2, U32)
    window = np.empty(ngram, U64)
    minima = np.empty(len(multipliers), U32)
    total = 0
    for document in range(len(offsets) - 1):
        counts[document] = 0
        if not wanted[document]:
            continue
        text = data[offsets[document] : offsets[document + 1]]
        own = shingles[total : total + len(text) // 2 + 1]
        is_ascii = _fold(text, folded)
        count = _shingle(folded, len(text), is_ascii, classes, window, own)
        count = _sort_unique(own, count, scratch, positions)
        counts[document] = count
        total += count
        if count:
            _minimise(own[:count], multipliers, addends, minima)
            _hash_bands(minima, band_hashes[document])
    return total


@compiled
def signatures(shingles: Hashes, counts: Counts, multipliers: Minima, addends: Minima, minima: Any) -> None:
    """Fills `minima` [sets, permutations] with the signatures of the sets that stand one after another in
    `shingles`, none of which is empty."""
    start = 0
    for number in range(len(counts)):
        _minimise(shingles[start : start + counts[number]], multipliers, addends, minima[number])
        start += counts[number]


def capacity(offsets: Counts) -> int:
    """The most shingles the documents can have: two words take at least four bytes with what parts them, but
    for the last."""
    return int((np.diff(offsets) // 2 + 1).sum())


def permutations(count: int, seed: int) -> tuple[Minima, Minima]:
    """`count` odd multipliers and as many addends, a function of the seed alone (splitmix64, Steele et al.
    2014), where a library's generator may change its stream between versions."""
    state = (seed * 2 * count + np.arange(1, 2 * count + 1, dtype=U64)) * _ROLLING
    state = (state ^ (state >> U64(30))) * U64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> U64(27))) * U64(0x94D049BB133111EB)
    drawn = ((state ^ (state >> U64(31))) >> U64(32)).astype(U32)
    return drawn[:count] | U32(1), drawn[count:]


@compiled
def _mix(value: Any) -> Any:
    """The finaliser of MurmurHash3: a bijection of 64 bits in which each bit depends on all."""
    value ^= value >> U64(33)
    value *= U64(0xFF51AFD7ED558CCD)
    value ^= value >> U64(33)
    value *= U64(0xC4CEB9FE1A85EC53)
    return value ^ (value >> U64(33))


@compiled
def _rotate(value: Any, bits: int) -> Any:
    return (value << U64(bits)) | (value >> U64(64 - bits))


@compiled
def _longest(offsets: Counts) -> int:
    """The bytes of the longest document."""
    longest = 0
    for document in range(len(offsets) - 1):
        longest = max(longest, offsets[document + 1] - offsets[document])
    return longest


@compiled
def _normalise(text: Bytes, content: Bytes) -> int:
    """Writes the normalised content of the text and returns its length."""
    length = 0
    before = U8(32)  # so that whitespace at the beginning is left out as that after whitespace is
    for position in range(len(text)):
        byte = _CONTENT[text[position]]
        content[length] = byte
        length += int((byte != 32) | (before != 32))
        before = byte
    return length - 1 if length and before == 32 else length


@compiled
def _murmur128(data: Bytes, length: int) -> Any:
    """MurmurHash3_x64_128 of data[:length] with seed 0 (Appleby, public domain). Reads 16 bytes more."""
    first, second = U64(0), U64(0)
    for block in range(0, length - 15, 16):
        low, high = _load64(data, block), _load64(data, block + 8)
        first ^= _rotate(low * _MURMUR_1, 31) * _MURMUR_2
        first = (_rotate(first, 27) + second) * U64(5) + U64(0x52DCE729)
        second ^= _rotate(high * _MURMUR_2, 33) * _MURMUR_1
        second = (_rotate(second, 31) + first) * U64(5) + U64(0x38495AB5)
    tail = length - length % 16
    low = _load64(data, tail) & _LOW_BYTES[min(8, length - tail)]
    high = _load64(data, tail + 8) & _LOW_BYTES[max(0, length - tail - 8)]
    first ^= _rotate(low * _MURMUR_1, 31) * _MURMUR_2
    second ^= _rotate(high * _MURMUR_2, 33) * _MURMUR_1
    first ^= U64(length)
    second ^= U64(length)
    first += second
    second += first
    first, second = _mix(first), _mix(second)
    first += second
    second += first
    return first, second


@compiled
def _fold(text: Bytes, folded: Bytes) -> bool:
    """Writes the text with ASCII letters in lower case and ASCII separators as zeros, and zeros behind it;
    returns whether all of it is ASCII. Written so that a vector instruction does 32 bytes."""
    highest = U8(0)
    for position in range(len(text)):
        byte = text[position]
        highest = U8(highest | byte)
        lower = U8(byte | U8(32))
        letter = U8(lower - U8(97)) < U8(26)
        other = (U8(byte - U8(48)) < U8(10)) | (byte == U8(95)) | (byte >= U8(128))
        folded[position] = U8(lower if letter else byte) * U8(letter | other)
    folded[len(text) : len(text) + _PADDING] = U8(0)
    return bool(highest < U8(128))


@compiled
def _shingle(
    folded: Bytes, length: int, is_ascii: bool, classes: Bytes, window: Hashes, shingles: Hashes
) -> int:
    """Writes the hash of every run of len(window) words of a folded text, or of all words where they are
    fewer, and returns how many there are. The hash rolls: base^(n-1) w1 + … + wn over the words' hashes."""
    ngram = len(window)
    window[:] = U64(0)
    power = U64(1)
    for _ in range(ngram):
        power *= _ROLLING
    rolled = U64(0)
    words = slot = count = 0
    start = 0
    last = U64(0)  # whether the byte before the block is in a word
    hidden = cuts = hidden_next = cuts_next = U64(0)
    for block in range(0, length + 1, _BLOCK):  # the last holds a byte behind the text
        inside = U64(0)
        for part in range(0, _BLOCK, 8):
            word = _load64(folded, block + part)
            filled = (((word & _LOW_BITS) + _LOW_BITS) | word) & _HIGH_BITS
            inside |= ((filled * _GATHER) >> U64(56)) << U64(part)
        if not is_ascii:
            hidden, cuts, hidden_next, cuts_next = _foreign(folded, block, classes, hidden_next, cuts_next)
            inside &= ~hidden
        before = (inside << U64(1)) | last
        begins = inside & (~before | cuts)
        ends = before & (~inside | cuts)
        if not last:
            start = block + _lowest_bit(begins)
            begins &= begins - U64(1)
        last = inside >> U64(63)
        while ends:
            word = _hash_word(folded, start, block + _lowest_bit(ends))
            ends &= ends - U64(1)
            start = block + _lowest_bit(begins)  # of the next word; none: the next block finds it
            begins &= begins - U64(1)
            rolled = rolled * _ROLLING + word - window[slot] * power
            window[slot] = word
            slot = slot + 1 if slot + 1 < ngram else 0
            words += 1
            if words >= ngram:
                shingles[count] = _mix(rolled)
                count += 1
    if 0 < words < ngram:
        shingles[0] = _mix(rolled)
        count = 1
    return count


@compiled
def _hash_word(folded: Bytes, start: int, end: int) -> Any:
    """The hash of folded[start:end]: no two words of at most eight bytes have the same."""
    hashed = U64(0)
    while end - start > 8:
        hashed = _mix(hashed ^ _load64(folded, start))
        start += 8
    return _mix(hashed ^ (_load64(folded, start) & _LOW_BYTES[end - start]))


@compiled
def _foreign(folded: Bytes, block: int, classes: Bytes, hidden: Any, cuts: Any) -> Any:
    """The masks of a block's bytes that separate though they are no ASCII, and of those before which a word
    ends or begins though both sides are in words; then what its characters do in the next block. `hidden` and
    `cuts` come from the block before."""
    hidden_next, cuts_next = U64(0), U64(0)
    for part in range(0, _BLOCK, 8):
        word = _load64(folded, block + part)
        leads = word & (word << U64(1)) & _HIGH_BITS  # 0xC0 … 0xFF begin a character
        while leads:
            bit = part + (_lowest_bit(leads) >> 3)
            leads &= leads - U64(1)
            kind, width = _non_ascii(folded, block + bit, classes)
            ones = (U64(1) << U64(width)) - U64(1)
            if kind == SEPARATOR:
                hidden |= ones << U64(bit)
                hidden_next |= (ones >> U64(1)) >> U64(63 - bit)
            elif kind == WORD:
                ones = (U64(1) << U64(width)) | U64(1)
                cuts |= ones << U64(bit)
                cuts_next |= (ones >> U64(1)) >> U64(63 - bit)
    return hidden, cuts, hidden_next, cuts_next


@compiled
def _non_ascii(data: Bytes, position: int, classes: Bytes) -> Any:
    """What the character that begins here does, and its width in bytes where it is no letter: letters may be
    taken byte by byte. Reads three bytes more."""
    lead, second = np.int64(data[position]), np.int64(data[position + 1]) & 0x3F
    if lead < 0xE0:
        point, width = (lead & 0x1F) << 6 | second, 2
    else:
        third = np.int64(data[position + 2]) & 0x3F
        point, width = (lead & 0x0F) << 12 | second << 6 | third, 3
        if lead >= 0xF0:
            point, width = (point & 0x7FFF) << 6 | (np.int64(data[position + 3]) & 0x3F), 4
    kind = classes[point]
    return kind, (1 if kind == LETTER else width)


@compiled
def _sort_unique(values: Hashes, count: int, scratch: Hashes, positions: Minima) -> int:
    """Sorts values[:count] and drops repeats; returns how many stay. Hashes are uniform, so one pass puts
    each within a few places of its own and insertion does the rest: 10 ns a value, quicksort takes 80. That
    takes memory, so more values than `scratch` holds are sorted in place."""
    if count < 2:
        return count
    if count > len(scratch):
        values[:count].sort()
        return _unique(values, count, values)
    bits = 1
    while (1 << bits) < count:
        bits += 1
    shift = U64(64 - bits)
    positions[: (1 << bits) + 1] = U32(0)
    for index in range(count):
        positions[np.int64(values[index] >> shift) + 1] += U32(1)
    for bucket in range(1 << bits):
        positions[bucket + 1] += positions[bucket]
    for index in range(count):
        home = np.int64(values[index] >> shift)
        scratch[positions[home]] = values[index]
        positions[home] += U32(1)
    for index in range(1, count):
        value = scratch[index]
        place = index
        while place > 0 and scratch[place - 1] > value:
            scratch[place] = scratch[place - 1]
            place -= 1
        scratch[place] = value
    return _unique(scratch, count, values)


@compiled
def _unique(values: Hashes, count: int, unique: Hashes) -> int:
    """Writes the sorted values[:count] without repeats, and returns how many they are."""
    unique[0] = values[0]
    last = 0
    for index in range(1, count):
        last += values[index] != unique[last]
        unique[last] = values[index]
    return last + 1


@compiled
def _minimise(shingles: Hashes, multipliers: Minima, addends: Minima, minima: Minima) -> None:
    """The least of all shingles under each permutation. Eight shingles at once: so a permutation's constants
    are read, and its minimum read and written, once for the eight. Where fewer are left the last is taken
    again, which changes no minimum."""
    minima[:] = U32(0xFFFFFFFF)
    end = len(shingles) - 1
    for index in range(0, len(shingles), 8):
        a = U32(shingles[index] >> U64(32))
        b = U32(shingles[min(index + 1, end)] >> U64(32))
        c = U32(shingles[min(index + 2, end)] >> U64(32))
        d = U32(shingles[min(index + 3, end)] >> U64(32))
        e = U32(shingles[min(index + 4, end)] >> U64(32))
        f = U32(shingles[min(index + 5, end)] >> U64(32))
        g = U32(shingles[min(index + 6, end)] >> U64(32))
        h = U32(shingles[min(index + 7, end)] >> U64(32))
        for i in range(len(minima)):
            by, plus = multipliers[i], addends[i]
            ab = min(U32(U32(by * a) + plus), U32(U32(by * b) + plus))
            cd = min(U32(U32(by * c) + plus), U32(U32(by * d) + plus))
            ef = min(U32(U32(by * e) + plus), U32(U32(by * f) + plus))
            gh = min(U32(U32(by * g) + plus), U32(U32(by * h) + plus))
            minima[i] = min(minima[i], min(min(ab, cd), min(ef, gh)))


@compiled
def _hash_bands(minima: Minima, hashes: Hashes) -> None:
    """The hash of each band of the signature. Row by row, so that the bands' chains run side by side."""
    bands = len(hashes)
    rows = len(minima) // bands
    for band in range(bands):
        hashes[band] = _mix(U64(band + 1) * _ROLLING)  # the band is part of it: one space for all bands
    for row in range(rows):
        for band in range(bands):
            hashes[band] = _mix(hashes[band] ^ U64(minima[band * rows + row]))
