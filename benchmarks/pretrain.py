"""How fast what feeds a model is, beside the peers.

    python benchmarks/pretrain.py [--quick]

One part so far: text → token ids, of documentation and sources of the installed packages, with vocabularies
of BPE and of WordPiece trained on them, in turns with `tokenizers`' own `encode_batch` on the same cores;
that both give the same ids is checked first.

Notes. tiktoken with the same merges is about four times as fast as `tokenizers`, but its engine of regular
expressions panics on a million spaces. Here the pattern is cut by hand; that pieces are kept with their ids
gives most, as a text is mostly words that were seen before.

The last line is one JSON object with all figures.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from importlib.metadata import version
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from pretrain_encode import measure_encoding


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="less text and fewer turns")
    figures, ratios = measure_encoding(parser.parse_args().quick)
    body = {
        "benchmark": "pretrain",
        "machine": {"processor": platform.processor() or platform.machine(), "cores": os.cpu_count()},
        "versions": {"python": platform.python_version()}
        | {name: version(name) for name in ("numpy", "numba", "tokenizers")},
        "figures": figures,
        "ratios": ratios,
    }
    print(json.dumps(body))


if __name__ == "__main__":
    main()
