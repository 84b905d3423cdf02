"""datatrove's four MinHash stages on its local executor, in its own environment, as its documentation has it:

    datatrove_stages.py TEXTS OUT WORKERS BUCKETS HASHES

TEXTS/*.parquet → OUT/kept/*.parquet. Prints the seconds of each stage and the `url` of all that stay, as
JSON. Its buffers are larger than its default of five lines, and it writes Parquet, faster than JSON."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import pyarrow.parquet
from datatrove.executor import LocalPipelineExecutor  # type: ignore[import-not-found]
from datatrove.pipeline.dedup import (  # type: ignore[import-not-found]
    MinhashDedupBuckets,
    MinhashDedupCluster,
    MinhashDedupFilter,
    MinhashDedupSignature,
)
from datatrove.pipeline.dedup.minhash import MinhashConfig  # type: ignore[import-not-found]
from datatrove.pipeline.readers import ParquetReader  # type: ignore[import-not-found]
from datatrove.pipeline.writers import ParquetWriter  # type: ignore[import-not-found]

LINES = 1000  # read at once
FOLDERS = ("signatures", "pairs", "removed", "kept")


def reader(texts: str) -> ParquetReader:
    return ParquetReader(texts, id_key="url")


def main() -> None:
    texts, out = sys.argv[1:3]
    workers, buckets, hashes = map(int, sys.argv[3:])
    config = MinhashConfig(n_grams=5, num_buckets=buckets, hashes_per_bucket=hashes)
    files = len(list(Path(texts).glob("*.parquet")))
    signatures, pairs, removed, kept = (f"{out}/{name}" for name in FOLDERS)
    stages = {
        "signatures": (files, [reader(texts), MinhashDedupSignature(signatures, config=config)]),
        "buckets": (
            buckets,
            [MinhashDedupBuckets(signatures, pairs, config=config, lines_to_buffer=LINES)],
        ),
        "cluster": (1, [MinhashDedupCluster(pairs, removed, config=config, lines_to_buffer=LINES)]),
        "filter": (
            files,
            [reader(texts), MinhashDedupFilter(removed, lines_to_buffer=LINES), ParquetWriter(kept)],
        ),
    }
    seconds = {}
    for name, (tasks, pipeline) in stages.items():
        began = time.perf_counter()
        LocalPipelineExecutor(
            pipeline, tasks=tasks, workers=min(workers, tasks), logging_dir=f"{out}/logs/{name}"
        ).run()
        seconds[name] = time.perf_counter() - began
    names: list[str] = []
    for path in sorted(Path(kept).glob("*.parquet")):
        names += pyarrow.parquet.read_table(path, columns=["id"])["id"].to_pylist()
    print(json.dumps({"seconds": seconds, "kept": names}))


if __name__ == "__main__":
    main()
