"""How fast tokens are made and a model is trained on them, beside the peers.

    python benchmarks/pretrain.py [--quick] [--only PART …]

Parts:
- encode: text → token ids of BPE and of WordPiece, in turns with `tokenizers`' own `encode_batch`; the ids
  are equal;
- step: `ingot.model.train_step`, compiled, in turns with a plain loop over Hugging Face's
  `LlamaForCausalLM`, eager and compiled, and with litgpt's compiled step; the losses agree;
- stage: the whole pretrain stage (`ingot run`: Ray Train, the loader, a store on S3) beside bare steps over
  the rows that it read: what they cost, how long steps wait for data, how long saving holds them up.

Notes on encoding. tiktoken with the same merges is about four times as fast as `tokenizers`, but its engine
of regular expressions panics on a million spaces. Here the pattern is cut by hand; that pieces are kept with
their ids gives most, as a text is mostly words that were seen before.

Notes on the step, of 6.8 million parameters, 4 x 512 tokens, fp32, one thread of a busy machine (AMD, AVX2),
in CPU time. Of a step of ours, compiled, 72 % are products with weights and 11 % attention's products; all
loops share these, so that none can be half as fast again as another:
- the products run at 65 to 75 GFLOP/s a core, and OpenBLAS and oneDNN at the same: nothing to be had there;
- PyTorch's attention reaches 23 GFLOP/s. As products over blocks of queries both passes take 45 ms instead of
  68, compiled (cpu_attention.py). Computing the scores again in the backward pass instead of keeping them was
  slower at 512 tokens, and at 2048 and more as fast as PyTorch's kernel;
- of packed rows, a document at a time is faster than these blocks with a mask, but for rows of 256;
- the loss with its gradient in the forward pass, one buffer for all logits, and what is narrow scaled instead
  of them: 407 ms instead of 475 at a vocabulary of 8192 and 1.8 s instead of 2.8 at 32,768 (losses.py);
- keeping freed pages (MALLOC_MMAP_THRESHOLD_, MALLOC_TRIM_THRESHOLD_) leaves no page fault and gains nothing;
  huge pages (THP_MEM_ALLOC_ENABLE=1) cost 10 %, in the kernel, which has to clear them;
- compiling saves the eager step 2 to 7 %, and Hugging Face's 12 to 18 %, whose rotation, norms and SwiGLU are
  more passes;
- bf16 is about five times as slow as fp32 on a CPU without instructions for it.

Notes on the stage. Ray's processes take about a tenth of a core (each actor one hundredth for waiting: its
main thread wakes up a hundred times a second). A step on all cores is slower by that; with a core left to
them no difference was found.

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

from peers.environment import pinned
from pretrain_encode import measure_encoding
from pretrain_stage import measure_stage
from pretrain_step import measure_step

PARTS = {"encode": measure_encoding, "step": measure_step, "stage": measure_stage}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--quick",
        action="store_true",
        help="less text, a smaller model and fewer turns: within five minutes",
    )
    parser.add_argument("--only", choices=PARTS, action="append", help="this part (several: give it again)")
    options = parser.parse_args()
    figures: dict[str, float] = {}
    ratios: dict[str, float] = {}
    for part in options.only or PARTS:
        found, compared = PARTS[part](options.quick)
        figures |= found
        ratios |= compared
    packages = ("numpy", "numba", "tokenizers", "torch", "transformers", "ray")
    body = {
        "benchmark": "pretrain",
        "machine": {"processor": platform.processor() or platform.machine(), "cores": os.cpu_count()},
        "versions": {"python": platform.python_version()}
        | {name: version(name) for name in packages}
        | pinned("litgpt"),
        "figures": {name: round(value, 4) for name, value in figures.items()},
        "ratios": {name: round(value, 3) for name, value in ratios.items()},
    }
    print(json.dumps(body))


if __name__ == "__main__":
    main()
