"""One of several processes (or the only one) that train the same small model; started by test_parallel.py.

    python train_ranks.py RANK WORLD FOLDER

Meets the others through a file in FOLDER and leaves what it saw there.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor

from ingot.model import (
    IGNORED,
    Batch,
    ModelConfig,
    StepMetrics,
    TrainState,
    Transformer,
    adamw,
    data_mesh,
    generate,
    parallelize,
    train_step,
)

CONFIG = ModelConfig(vocabulary=97, width=32, layers=2, heads=4, kv_heads=2, hidden=40, context=24)
ROWS, LENGTH = 8, 16


def global_batch(step: int) -> list[Batch]:
    """Four microbatches of two rows, two of the five batches packed; the rows count very different
    numbers of targets."""
    generator = torch.Generator().manual_seed(step % 5)
    tokens = torch.randint(CONFIG.vocabulary, (ROWS, LENGTH + 1), generator=generator)
    targets = tokens[:, 1:].clone()
    for row, ignored in enumerate((0, 0, 1, 0, 15, 16, 7, 16)):
        targets[row, :ignored] = IGNORED
    documents = (torch.rand(ROWS, LENGTH, generator=generator) < 0.2).cumsum(dim=1).int()
    return [
        Batch(t, u, documents_BT=d if step % 5 % 2 else None)
        for t, u, d in zip(tokens[:, :-1].split(2), targets.split(2), documents.split(2), strict=True)
    ]


def start(mesh: DeviceMesh | None, **options: Any) -> TrainState:
    with torch.device("meta"):
        model = Transformer(CONFIG)
    parallelize(model, mesh, **options)
    model.to_empty(device="cpu")
    model.init_weights(seed=7)
    return TrainState(model, adamw(model))


def train(state: TrainState, rank: int, world: int, steps: int) -> list[StepMetrics]:
    share = slice(4 // world * rank, 4 // world * (rank + 1))
    return [
        train_step(state, global_batch(step)[share], learning_rate=3e-3, clip=1.0) for step in range(steps)
    ]


def main(rank: int, world: int, folder: Path) -> None:
    torch.set_num_threads(1)
    mesh = None
    if world > 1:
        dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=world)
        mesh = data_mesh("cpu")
    state = start(mesh)
    metrics = train(state, rank, world, steps=20)
    seen: dict[str, Any] = {
        "loss": [step.loss for step in metrics],
        "norm": [step.gradient_norm for step in metrics],
        "tokens": [step.tokens for step in metrics],
        "generated": generate(state.model, [[1, 2, 3], [4]], new_tokens=8),
        "sharded": {
            name: [isinstance(p, DTensor), p.numel(), p.to_local().numel() if isinstance(p, DTensor) else 0]
            for name, p in state.model.named_parameters()
        },
    }
    full = get_model_state_dict(state.model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
    if world > 1:
        replicated = start(data_mesh("cpu", replicas=world))
        seen["replicated_loss"] = [step.loss for step in train(replicated, rank, world, steps=5)]
        half = start(mesh, precision="bf16", checkpointing="full")
        seen["bf16_loss"] = [step.loss for step in train(half, rank, world, steps=20)]
        seen["bf16_master"] = sorted({str(p.dtype) for p in half.model.parameters()})
        dist.destroy_process_group()
    if rank == 0:
        torch.save(full, folder / f"{world}.pt")
    (folder / f"{world}-{rank}.json").write_text(json.dumps(seen))


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
