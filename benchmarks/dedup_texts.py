"""What benchmarks/dedup.py reads: real text that every machine has, and planted pairs of known similarity."""

from __future__ import annotations

import math
import os
import random
import string
import sysconfig
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import pyarrow
import pyarrow.parquet

SUFFIXES = {".py", ".pyi", ".md", ".rst", ".txt", ".h", ".hpp", ".cuh", ".c", ".cpp", ".js"}
SMALLEST, LARGEST = 64, 1_000_000  # bytes of a file that counts as a document
FILE_BYTES = 4_000_000  # of text in a Parquet file
LEVELS = (0.5, 0.6, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95)
WORDS = 120  # of a planted text


@dataclass(frozen=True)
class Pair:
    left: str
    right: str
    similarity: float  # exact, of their sets of word 5-grams


def gather(wanted: int) -> list[str]:
    """About `wanted` bytes of sources of the installed packages, evenly drawn from all of them in the order
    of their paths; all there is where that is less."""
    root = sysconfig.get_path("purelib")
    found = sorted(
        (path, os.path.getsize(path))
        for folder, _, names in os.walk(root)
        for path in (os.path.join(folder, name) for name in names if Path(name).suffix in SUFFIXES)
        if os.path.isfile(path)
    )
    found = [(path, size) for path, size in found if SMALLEST <= size <= LARGEST]
    share = min(1.0, wanted / sum(size for _, size in found))
    texts = []
    for number, (path, _) in enumerate(found):
        if int((number + 1) * share) > int(number * share):
            try:
                texts.append(Path(path).read_text(encoding="utf-8"))
            except UnicodeDecodeError:
                continue
    return [text for text in texts if text.strip()]


def grown(texts: list[str], factor: int) -> list[str]:
    """`factor` times as much text of the same sort, none of it like another: each copy has its letters moved
    on by another number of places in the alphabet."""
    letters = string.ascii_lowercase.encode()
    found = []
    for by in range(factor):
        moved = letters[by:] + letters[:by]
        table = bytes.maketrans(letters + letters.upper(), moved + moved.upper())
        found += [text.encode().translate(table).decode() for text in texts]
    return found


def planted(each: int, ngram: int = 5) -> list[Pair]:
    """`each` pairs of every level, of at least its similarity. A pair has its beginning in common, and words
    that no other text has."""
    draw = random.Random(2026)
    total = WORDS - ngram + 1
    pairs = []
    for level in LEVELS:
        shared = math.ceil(2 * total * level / (1 + level) - 1e-9)
        for _ in range(each):
            words = ["".join(draw.choices(string.ascii_lowercase, k=9)) for _ in range(2 * WORDS)]
            common = words[: shared + ngram - 1]
            rest = WORDS - len(common)
            left, right = words[WORDS : WORDS + rest], words[WORDS + rest : WORDS + 2 * rest]
            exact = shared / (2 * total - shared)
            pairs.append(Pair(" ".join(common + left), " ".join(common + right), exact))
    return pairs


def write(folder: Path, texts: list[str], pairs: list[Pair]) -> int:
    """Parquet files of about FILE_BYTES with `text` and `url`, a document's name: its number, or `N left` and
    `N right` of planted pair N, which lie among the rest. Returns the bytes of text."""
    named = [(str(number), text) for number, text in enumerate(texts)]
    for number, pair in enumerate(pairs):
        named += [(f"{number} left", pair.left), (f"{number} right", pair.right)]
    random.Random(0).shuffle(named)
    folder.mkdir(parents=True)
    held: list[tuple[str, str]] = []
    total = filled = files = 0
    for entry in [*named, None]:
        if held and (entry is None or filled >= FILE_BYTES):
            urls, bodies = zip(*held, strict=True)
            put(folder / f"{files:05d}.parquet", url=urls, text=bodies)
            held, filled, files = [], 0, files + 1
        if entry is not None:
            held.append(entry)
            size = len(entry[1].encode())
            filled, total = filled + size, total + size
    return total


def put(path: Path, **columns: Iterable[str]) -> Path:
    pyarrow.parquet.write_table(pyarrow.table({name: list(values) for name, values in columns.items()}), path)
    return path
