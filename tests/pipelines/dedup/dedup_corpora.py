"""Documents with planted duplicates, and the corpus artifacts that hold them."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Mapping, Sequence

import pyarrow

from ingot.pipelines.artifact import Artifact, File, commit, put_table
from ingot.pipelines.store import Store

SCHEMA = pyarrow.schema(
    [
        *((name, pyarrow.string()) for name in ("id", "text", "source", "path")),
        ("record", pyarrow.int64()),
        *((name, pyarrow.string()) for name in ("url", "metadata")),
    ]
)


def name_of(path: str) -> str:
    """The id of the document at this path."""
    return hashlib.sha256(path.encode()).hexdigest()[:32]


def unique_words(draw: random.Random, count: int) -> list[str]:
    """Words of which no two are likely to be equal, so that no shingle comes twice."""
    return ["".join(draw.choices("abcdefghijklmnopqrstuvwxyz", k=9)) for _ in range(count)]


def planted_pair(
    draw: random.Random, similarity: float, length: int, ngram: int = 5
) -> tuple[str, str, float]:
    """Two texts of `length` words with a common beginning, and the Jaccard similarity of their shingles: as
    near to the wanted one as it goes, not above it."""
    total = length - ngram + 1
    shared = int(2 * total * similarity / (1 + similarity) + 1e-9)
    common = unique_words(draw, shared + ngram - 1)
    texts = [" ".join(common + unique_words(draw, length - len(common))) for _ in range(2)]
    return texts[0], texts[1], shared / (2 * total - shared)


def make_corpus(store: Store, texts: Mapping[str, str], files: int, key: str) -> Artifact:
    """The artifact of the documents path → text, in the order given, cut into this many files."""
    paths = list(texts)
    entries: dict[str, File] = {}
    for number in range(files):
        own = paths[len(paths) * number // files : len(paths) * (number + 1) // files]
        entries[f"documents/{number:05d}.parquet"] = put_table(store, documents_table(own, texts))
    return commit(store, f"artifacts/corpus/{key}", "corpus", key, entries, {}, {})


def documents_table(
    paths: Sequence[str],
    texts: Mapping[str, str],
    source: str = "test",
    urls: Mapping[str, str] | None = None,
    metadata: Mapping[str, str] | None = None,
) -> pyarrow.Table:
    count = len(paths)
    columns = {
        "id": [name_of(path) for path in paths],
        "text": [texts[path] for path in paths],
        "source": [source] * count,
        "path": list(paths),
        "record": [0] * count,
        "url": [(urls or {}).get(path) for path in paths],
        "metadata": [(metadata or {}).get(path) for path in paths],
    }
    return pyarrow.table(columns, schema=SCHEMA)
