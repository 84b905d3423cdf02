"""Four processes that train one model through the training's own loop: four, three and two of them together
and one of them alone; started by test_worlds.py.

    python loop_ranks.py FOLDER

They are forked, as importing PyTorch takes longer than all they do. The training of N processes lies in the
store FOLDER at world-N."""

from __future__ import annotations

import multiprocessing
import sys
from dataclasses import asdict

import numpy as np
import torch
import torch.distributed as dist
from made_tokens import put_tokens

from ingot.pipelines.sections import Pretrain
from ingot.pipelines.store import LocalStore
from ingot.pipelines.training.group import Group
from ingot.pipelines.training.job import Job, Part, SpecialTokens
from ingot.pipelines.training.loop import Loop

VOCABULARY, CONTEXT, STEPS = 97, 16, 50  # 97 is a prime


def train(folder: str, key: str, rank: int, world: int) -> None:
    section = Pretrain.model_validate(
        {
            "model": {"width": 30, "layers": 2, "heads": 5, "kv_heads": 1, "hidden": 41, "context": CONTEXT},
            "steps": STEPS,
            "batch_tokens": 12 * CONTEXT,
            "learning_rate": 0.003,
            "warmup_steps": 5,
            "workers": world,
            "micro_batch": 3,
            "checkpoint_every": 25,
        }
    )
    job = Job(
        dataset=Part(
            "ingot.pipelines.training.tokens:TokenDataset",
            {"tokens": "artifacts/tokens/made", "context": CONTEXT, "rows": 12, "seed": 1},
        ),
        special=SpecialTokens(0, (0,), 0),
        model=asdict(section.model.config(VOCABULARY)),
    )
    if world > 1:
        meet = f"file://{folder}/meet-{key}-{world}"
        dist.init_process_group("gloo", init_method=meet, rank=rank, world_size=world)
    Loop(LocalStore(folder), key, job, section, Group(rank, world, torch.device("cpu"), 3)).run()
    if world > 1:
        dist.destroy_process_group()


def run(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    for world in (4, 3, 2):
        if rank < world:
            train(folder, f"world-{world}", rank, world)
    if rank == 3:
        train(folder, "world-1", 0, 1)


def main(folder: str) -> int:
    text = np.random.default_rng(0).integers(1, VOCABULARY, 4001) // 3 * 3
    put_tokens(LocalStore(folder), [text[:1500], text[1500:]], text[:100])
    fork = multiprocessing.get_context("fork")
    processes = [fork.Process(target=run, args=(rank, folder), daemon=True) for rank in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    return max(abs(process.exitcode or 0) for process in processes)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
