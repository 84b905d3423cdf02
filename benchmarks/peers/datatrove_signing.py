"""datatrove's first MinHash stage, in its own environment, without its reading and writing: its functions
from a text to shingles to a signature, over documents in memory. 32 buckets of 8 hashes, 64-bit xxHash."""

from __future__ import annotations

import json
import sys
import tempfile
import time

import pyarrow.parquet
from datatrove.pipeline.dedup.minhash import (  # type: ignore[import-not-found]
    MinhashConfig,
    MinhashDedupSignature,
)


def main() -> None:
    documents, pairs = (pyarrow.parquet.read_table(path) for path in sys.argv[1:])
    texts = documents["text"].to_pylist()
    with tempfile.TemporaryDirectory() as folder:
        config = MinhashConfig(n_grams=5, num_buckets=32, hashes_per_bucket=8)
        stage = MinhashDedupSignature(folder, config=config)

        def sign(text: str) -> list[int]:
            shingles = stage.get_shingles(text)
            if not shingles.size:
                return []
            return [hashed for bucket in stage.get_signature(shingles) for hashed in bucket]

        sign("its tokenizer is made at the first text")
        for line in sys.stdin:
            if line.strip() == "pairs":
                both = zip(pairs["left"].to_pylist(), pairs["right"].to_pylist(), strict=True)
                answer: dict[str, object] = {
                    "similarities": [share(sign(left), sign(right)) for left, right in both]
                }
            else:
                began = time.perf_counter()
                for text in texts:
                    sign(text)
                answer = {"seconds": time.perf_counter() - began}
            print(json.dumps(answer), flush=True)


def share(left: list[int], right: list[int]) -> float:
    return sum(a == b for a, b in zip(left, right, strict=True)) / len(left)


if __name__ == "__main__":
    main()
