"""What the kernels compute, in plain Python, and deduplication by the definition: the tests' oracle."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from unicode_of_words import is_separator, is_word, ranges_of

MASK = (1 << 64) - 1
ROLLING = 0x9E3779B97F4A7C15

_SEPARATORS = "\\x00-/:-@\\[-^`{-\\x7f" + "".join(f"{chr(a)}-{chr(b)}" for a, b in ranges_of(is_separator))
_ALONE = "".join(f"{chr(a)}-{chr(b)}" for a, b in ranges_of(is_word))
_WORD = re.compile(f"[{_ALONE}]|[^{_SEPARATORS}{_ALONE}]+")


def normalise(text: str) -> bytes:
    return b" ".join(text.encode().lower().split())


def words(text: str) -> list[bytes]:
    return [word.encode().lower() for word in _WORD.findall(text)]


def shingle_words(text: str, ngram: int) -> set[tuple[bytes, ...]]:
    """The shingles as they are, before any hashing."""
    found = words(text)
    if len(found) < ngram:
        return {tuple(found)} if found else set()
    return {tuple(found[start : start + ngram]) for start in range(len(found) - ngram + 1)}


def jaccard(left: str, right: str, ngram: int) -> float:
    a, b = shingle_words(left, ngram), shingle_words(right, ngram)
    return len(a & b) / len(a | b)


def mix(value: int) -> int:
    value ^= value >> 33
    value = value * 0xFF51AFD7ED558CCD & MASK
    value ^= value >> 33
    value = value * 0xC4CEB9FE1A85EC53 & MASK
    return value ^ (value >> 33)


def shingle_hash(shingle: Sequence[bytes]) -> int:
    rolled = 0
    for word in shingle:
        hashed = 0
        for start in range(0, len(word), 8):
            hashed = mix(hashed ^ int.from_bytes(word[start : start + 8], "little"))
        rolled = (rolled * ROLLING + hashed) & MASK
    return mix(rolled)


def shingles(text: str, ngram: int) -> list[int]:
    return sorted({shingle_hash(shingle) for shingle in shingle_words(text, ngram)})


def band_hashes(
    values: Sequence[int], multipliers: Sequence[int], addends: Sequence[int], bands: int
) -> list[int]:
    minima = [
        min((multiplier * (value >> 32) + addend) & 0xFFFFFFFF for value in values)
        for multiplier, addend in zip(multipliers, addends, strict=True)
    ]
    rows = len(minima) // bands
    hashes = []
    for band in range(bands):
        hashed = mix((band + 1) * ROLLING & MASK)
        for minimum in minima[band * rows : (band + 1) * rows]:
            hashed = mix(hashed ^ minimum)
        hashes.append(hashed)
    return hashes


def murmur128(data: bytes) -> tuple[int, int]:
    """MurmurHash3_x64_128 with seed 0."""
    c1, c2 = 0x87C37B91114253D5, 0x4CF5AD432745937F

    def rotate(value: int, bits: int) -> int:
        return (value << bits | value >> (64 - bits)) & MASK

    h1 = h2 = 0
    whole = len(data) // 16 * 16
    for start in range(0, whole, 16):
        k1, k2 = (int.from_bytes(data[at : at + 8], "little") for at in (start, start + 8))
        h1 ^= rotate(k1 * c1 & MASK, 31) * c2 & MASK
        h1 = ((rotate(h1, 27) + h2) * 5 + 0x52DCE729) & MASK
        h2 ^= rotate(k2 * c2 & MASK, 33) * c1 & MASK
        h2 = ((rotate(h2, 31) + h1) * 5 + 0x38495AB5) & MASK
    k1, k2 = (int.from_bytes(part, "little") for part in (data[whole : whole + 8], data[whole + 8 :]))
    h1 ^= rotate(k1 * c1 & MASK, 31) * c2 & MASK
    h2 ^= rotate(k2 * c2 & MASK, 33) * c1 & MASK
    h1, h2 = h1 ^ len(data), h2 ^ len(data)
    h1 = (h1 + h2) & MASK
    h2 = (h2 + h1) & MASK
    h1, h2 = mix(h1), mix(h2)
    h1 = (h1 + h2) & MASK
    return h1, (h2 + h1) & MASK


def resolve(
    documents: Mapping[str, str], pairs: Iterable[tuple[str, str]], ngram: int, threshold: float
) -> dict[str, tuple[str, float]]:
    """Those that go among documents of different content (id → text): id → (witness, similarity), comparing
    the candidate pairs alone, by the definition."""
    rank = {name: (-len(documents[name].encode()), name) for name in documents}
    similar: dict[str, list[tuple[Any, str, float]]] = {name: [] for name in documents}
    for pair in pairs:
        better, worse = sorted(pair, key=rank.__getitem__)
        similarity = jaccard(documents[better], documents[worse], ngram)
        if similarity >= threshold:
            similar[worse].append((rank[better], better, similarity))
    gone: dict[str, tuple[str, float]] = {}
    for name in sorted(documents, key=rank.__getitem__):
        for _, better, similarity in sorted(similar[name]):
            if better not in gone:
                gone[name] = (better, similarity)
                break
    return gone
