"""A loop over documents with datasketch, in its own environment: words, 5-grams, MinHash of 256 permutations.

Its fastest documented form: `MinHash.generator` hashes a document's whole set with `update_batch` and shares
the permutations; xxHash in place of the default SHA-1. Words are found by one expression over bytes."""

from __future__ import annotations

import json
import re
import sys
import time

import pyarrow.parquet
import xxhash
from datasketch import MinHash

NGRAM, PERMUTATIONS = 5, 256
WORD = re.compile(rb"[0-9a-z_\x80-\xff]+")


def shingles(text: str) -> set[bytes]:
    words = WORD.findall(text.encode().lower())
    if len(words) < NGRAM:
        return {b" ".join(words)} if words else set()
    return {b" ".join(gram) for gram in zip(*(words[start:] for start in range(NGRAM)), strict=False)}


def sign(texts: list[str]) -> list[MinHash]:
    sets = (shingles(text) for text in texts)
    return list(MinHash.generator(sets, num_perm=PERMUTATIONS, hashfunc=xxhash.xxh32_intdigest))


def main() -> None:
    documents, pairs = (pyarrow.parquet.read_table(path) for path in sys.argv[1:])
    texts = documents["text"].to_pylist()
    for line in sys.stdin:
        if line.strip() == "pairs":
            left, right = (sign(pairs[name].to_pylist()) for name in ("left", "right"))
            answer: dict[str, object] = {
                "similarities": [float(a.jaccard(b)) for a, b in zip(left, right, strict=True)]
            }
        else:
            began = time.perf_counter()
            sign(texts)
            answer = {"seconds": time.perf_counter() - began}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
