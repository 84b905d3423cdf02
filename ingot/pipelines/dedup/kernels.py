"""From UTF-8 bytes to content keys, shingles and bands, without a Python object per document.

*Normalised content*: ASCII letters in lower case, each run of ASCII whitespace one space, none at the ends.

*Words*: runs of letters, digits and underscores, where every non-ASCII character counts as a letter except
general, Latin-1, CJK and full-width punctuation, which separates. A character of a script written without
spaces (Han, kana, Thai, Lao, Myanmar, Khmer) is a word of its own. Equal normalised contents have equal
words.

*Shingles*: the hashes of all runs of n words, as a sorted set. A text of fewer than n words is one shingle;
one without any word has none, and can only be an exact copy.

These stand in one file because numba's cache asks only whether a kernel's own file has changed: a kernel
would go on with the old code of another file's function."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from ingot.pipelines.dedup.compiled import compiled

Bytes = npt.NDArray[np.uint8]
Hashes = npt.NDArray[np.uint64]
Minima = npt.NDArray[np.uint32]
Counts = npt.NDArray[np.int64]

U8, U32, U64 = np.uint8, np.uint32, np.uint64

_FOLDED = np.zeros(128, U8)  # an ASCII word byte in lower case; 0 where the byte separates words
for _byte in b"0123456789_abcdefghijklmnopqrstuvwxyz":
    _FOLDED[_byte] = _byte
    _FOLDED[ord(chr(_byte).upper())] = _byte

_LETTER, _SEPARATOR, _WORD = 0, 1, 2  # what a non-ASCII character does

_FNV_OFFSET, _FNV_PRIME = U64(0xCBF29CE484222325), U64(0x100000001B3)
_ROLLING = U64(0x9E3779B97F4A7C15)  # the base of the rolling hash: odd, so that no power of it is 0
_MURMUR_1, _MURMUR_2 = U64(0x87C37B91114253D5), U64(0x4CF5AD432745937F)


@compiled
def content_keys(data: Bytes, offsets: Counts, keys: Hashes) -> None:
    """Fills `keys` [documents, 2] with the 128-bit hash of each document's normalised content."""
    longest = 0
    for document in range(len(offsets) - 1):
        longest = max(longest, offsets[document + 1] - offsets[document])
    content = np.empty(longest, U8)
    for document in range(len(offsets) - 1):
        length = _normalise(data, offsets[document], offsets[document + 1], content)
        keys[document, 0], keys[document, 1] = _murmur128(content, length)


@compiled
def sign(
    data: Bytes,
    offsets: Counts,
    wanted: npt.NDArray[np.bool_],
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
    signature into `band_hashes` [documents, bands]. Returns the number of shingles.

    Permutation i of a shingle's upper half x is (multipliers[i] x + addends[i]) mod 2^32, multipliers odd
    (linear permutations: Broder et al., Min-wise independent permutations, 1998): 32 bits, so that a vector
    instruction does eight or more.
    Bands as in Leskovec, Rajaraman, Ullman, Mining of Massive Datasets, 3.4."""
    longest = 0
    for document in range(len(offsets) - 1):
        longest = max(longest, (offsets[document + 1] - offsets[document]) // 2 + 1)
    scratch = np.empty(longest, U64)
    positions = np.empty(4 * longest + 2, np.int64)
    window = np.empty(ngram, U64)
    minima = np.empty(len(multipliers), U32)
    rows = len(multipliers) // bands
    total = 0
    for document in range(len(offsets) - 1):
        counts[document] = 0
        if not wanted[document]:
            continue
        own = shingles[total : total + (offsets[document + 1] - offsets[document]) // 2 + 1]
        count = _shingle(data, offsets[document], offsets[document + 1], window, own)
        count = _sort_unique(own, count, scratch, positions)
        counts[document] = count
        total += count
        if count == 0:
            continue
        minima[:] = U32(0xFFFFFFFF)
        for index in range(count):
            value = U32(own[index] >> U64(32))
            for i in range(len(minima)):
                permuted = U32(U32(multipliers[i] * value) + addends[i])
                minima[i] = permuted if permuted < minima[i] else minima[i]
        for band in range(bands):
            hashed = _mix(U64(band + 1) * _ROLLING)  # the band is part of the hash: one space for all bands
            for row in range(rows):
                hashed = _mix(hashed ^ U64(minima[band * rows + row]))
            band_hashes[document, band] = hashed
    return total


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
def _normalise(data: Bytes, start: int, end: int, content: Bytes) -> int:
    """Writes the normalised content of data[start:end] and returns its length."""
    length = 0
    gap = False
    for position in range(start, end):
        byte = data[position]
        if byte == 32 or 9 <= byte <= 13:
            gap = length > 0
            continue
        if gap:
            content[length] = 32
            length += 1
            gap = False
        content[length] = byte + 32 if 65 <= byte <= 90 else byte
        length += 1
    return length


@compiled
def _murmur128(data: Bytes, length: int) -> Any:
    """MurmurHash3_x64_128 of data[:length] with seed 0 (Appleby, public domain)."""
    first, second = U64(0), U64(0)
    for block in range(0, length - 15, 16):
        low, high = _word64(data, block, 8), _word64(data, block + 8, 8)
        first ^= _rotate(low * _MURMUR_1, 31) * _MURMUR_2
        first = (_rotate(first, 27) + second) * U64(5) + U64(0x52DCE729)
        second ^= _rotate(high * _MURMUR_2, 33) * _MURMUR_1
        second = (_rotate(second, 31) + first) * U64(5) + U64(0x38495AB5)
    tail = length - length % 16
    low = _word64(data, tail, min(8, length - tail))
    high = _word64(data, tail + 8, max(0, length - tail - 8))
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
def _word64(data: Bytes, start: int, length: int) -> Any:
    """The little-endian integer of up to eight bytes."""
    word = U64(0)
    for index in range(length):
        word |= U64(data[start + index]) << U64(8 * index)
    return word


@compiled
def _shingle(data: Bytes, start: int, end: int, window: Hashes, shingles: Hashes) -> int:
    """Writes the hash of every run of len(window) words of data[start:end], or of all words where they are
    fewer, and returns how many there are. The hash rolls: base^(n-1) w1 + … + wn over the words' hashes."""
    ngram = len(window)
    window[:] = U64(0)
    power = U64(1)
    for _ in range(ngram):
        power *= _ROLLING
    rolled = U64(0)
    words = slot = count = 0
    while True:
        word, start = _next_word(data, start, end)
        if start < 0:
            break
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
def _next_word(data: Bytes, position: int, end: int) -> Any:
    """The hash of the first word from `position` on, in lower case, and where it ends: -1 for none."""
    hashed = _FNV_OFFSET
    inside = False
    while position < end:
        byte = data[position]
        if byte < 128:
            folded = _FOLDED[byte]
            if folded:
                hashed = (hashed ^ U64(folded)) * _FNV_PRIME
                inside = True
            elif inside:
                break
            position += 1
            continue
        kind, width = _non_ascii(data, position, end)
        if kind == _LETTER:
            hashed = (hashed ^ U64(byte)) * _FNV_PRIME
            inside = True
            position += 1
            continue
        if inside:
            break
        stop = min(position + width, end)
        if kind == _WORD:
            for index in range(position, stop):
                hashed = (hashed ^ U64(data[index])) * _FNV_PRIME
            return _mix(hashed), stop
        position = stop
    return _mix(hashed), position if inside else -1


@compiled
def _non_ascii(data: Bytes, position: int, end: int) -> Any:
    """What the character that begins here does, and its width in bytes where it is no letter. A continuation
    byte begins none of those told apart here, so letters may be taken byte by byte."""
    lead = data[position]
    second = data[position + 1] if position + 1 < end else U8(0)
    if lead == 0xC2:  # U+00A0 … U+00BF: Latin-1 punctuation, the no-break space
        return (_SEPARATOR, 2) if second >= 0xA0 else (_LETTER, 1)
    if lead == 0xE2:  # U+2000 … U+207F: general punctuation
        return (_SEPARATOR, 3) if second <= 0x81 else (_LETTER, 1)
    if lead == 0xE3:  # U+3000 … U+303F: CJK punctuation; above it kana and Han
        return (_SEPARATOR if second == 0x80 else _WORD), 3
    if 0xE4 <= lead <= 0xE9:  # Han
        return _WORD, 3
    if lead == 0xE0 and 0xB8 <= second <= 0xBB:  # Thai, Lao
        return _WORD, 3
    if lead == 0xE1 and (second in (0x80, 0x81, 0x9E, 0x9F)):  # Myanmar, Khmer
        return _WORD, 3
    if lead == 0xEF and second in (0xBC, 0xBD):  # U+FF00 … U+FF7F: full-width forms
        third = data[position + 2] if position + 2 < end else U8(0)
        mark = second == 0xBC and (third < 0x90 or 0x9A <= third <= 0xA0)
        return (_SEPARATOR if mark else _WORD), 3
    if lead == 0xF0 and 0xA0 <= second <= 0xB3:  # Han beyond the first plane
        return _WORD, 4
    return _LETTER, 1


@compiled
def _sort_unique(values: Hashes, count: int, scratch: Hashes, positions: Counts) -> int:
    """Sorts values[:count] and drops repeats; returns how many stay. Hashes are uniform, so one pass puts
    each within a few places of its own and insertion does the rest: 14 ns a value, quicksort takes 80."""
    if count < 2:
        return count
    bits = 1
    while (1 << bits) < count:
        bits += 1
    shift = U64(64 - bits)
    positions[: (1 << bits) + 1] = 0
    for index in range(count):
        positions[np.int64(values[index] >> shift) + 1] += 1
    for bucket in range(1 << bits):
        positions[bucket + 1] += positions[bucket]
    for index in range(count):
        home = np.int64(values[index] >> shift)
        scratch[positions[home]] = values[index]
        positions[home] += 1
    for index in range(1, count):
        value = scratch[index]
        place = index
        while place > 0 and scratch[place - 1] > value:
            scratch[place] = scratch[place - 1]
            place -= 1
        scratch[place] = value
    unique = 0
    for index in range(count):
        if index == 0 or scratch[index] != scratch[index - 1]:
            values[unique] = scratch[index]
            unique += 1
    return unique
