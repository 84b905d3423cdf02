"""Four processes that train the same small model, four, three and two of them together and one of them alone;
started by test_parallel.py.

    python train_ranks.py FOLDER equal|compiled

They are forked, as importing PyTorch takes longer than all they do. They meet through files in FOLDER, and
each leaves there what it saw.
"""

from __future__ import annotations

import functools
import importlib
import json
import multiprocessing
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor

from ingot.model import (
    IGNORED,
    Batch,
    ModelConfig,
    TrainState,
    Transformer,
    adamw,
    data_mesh,
    generate,
    muon,
    parallelize,
    train_step,
)

# Neither 4 nor 3 divides the vocabulary, and of the keys' 6 rows the last of four processes has none.
CONFIG = ModelConfig(vocabulary=97, width=30, layers=2, heads=5, kv_heads=1, hidden=41, context=24)
ROWS, LENGTH = 12, 16
STEPS = {"adamw": 15, "muon": 10}
"""A long test of pipelines/training takes 50, through the whole loop."""


def global_batch(step: int, rank: int, world: int) -> list[Batch]:
    """A process's rows in two microbatches, packed in two of five steps; the rows count very different
    numbers of targets."""
    generator = torch.Generator().manual_seed(step % 5)
    tokens = torch.randint(CONFIG.vocabulary, (ROWS, LENGTH + 1), generator=generator)
    targets = tokens[:, 1:].clone()
    for row, ignored in enumerate((0, 0, 1, 0, 15, 3, 9, 0, 12, 16, 7, 16)):
        targets[row, :ignored] = IGNORED
    documents = (torch.rand(ROWS, LENGTH, generator=generator) < 0.2).cumsum(dim=1).int()
    own = slice(ROWS // world * rank, ROWS // world * (rank + 1))
    return [
        Batch(t, u, documents_BT=d if step % 5 % 2 else None)
        for t, u, d in zip(*(x[own].chunk(2) for x in (tokens[:, :-1], targets, documents)), strict=True)
    ]


def start(
    mesh: DeviceMesh | None, optimizer: Callable[..., torch.optim.Optimizer] = adamw, **options: Any
) -> TrainState:
    with torch.device("meta"):
        model = Transformer(CONFIG)
    parallelize(model, mesh, **options)
    model.to_empty(device="cpu")
    model.init_weights(seed=7)
    return TrainState(model, optimizer(model))


def train(state: TrainState, rank: int, world: int, steps: int) -> dict[str, list[float]]:
    metrics = [
        train_step(state, global_batch(step, rank, world), learning_rate=3e-3, clip=1.0)
        for step in range(steps)
    ]
    return {
        "loss": [step.loss for step in metrics],
        "norm": [step.gradient_norm for step in metrics],
        "tokens": [step.tokens for step in metrics],
    }


def whole(state: TrainState) -> dict[str, torch.Tensor]:
    tensors = {name: parameter.detach() for name, parameter in state.model.named_parameters()}
    return {name: t.full_tensor() if isinstance(t, DTensor) else t for name, t in tensors.items()}


@contextmanager
def meeting(folder: Path, name: str, rank: int, world: int) -> Iterator[DeviceMesh | None]:
    if world == 1:
        yield None
        return
    dist.init_process_group("gloo", init_method=f"file://{folder}/{name}", rank=rank, world_size=world)
    yield data_mesh("cpu")
    dist.destroy_process_group()


def train_equally(rank: int, world: int, folder: Path) -> dict[str, Any]:
    with meeting(folder, f"meet-{world}", rank, world) as mesh:
        state = start(mesh)
        seen: dict[str, Any] = {
            "adamw": train(state, rank, world, STEPS["adamw"]),
            "generated": generate(state.model, [[1, 2, 3], [4]], new_tokens=8),
            "sharded": {
                name: [
                    isinstance(p, DTensor),
                    p.numel(),
                    p.to_local().numel() if isinstance(p, DTensor) else 0,
                ]
                for name, p in state.model.named_parameters()
            },
        }
        weights = {"adamw": whole(state)}
        state = start(mesh, muon)
        with counted_matrices() as counts:
            seen["muon"] = train(state, rank, world, STEPS["muon"])
        seen["orthogonalised"] = sum(counts) // STEPS["muon"]
        weights["muon"] = whole(state)
        if world == 3:
            seen["replicated"] = train(start(data_mesh("cpu", replicas=world)), rank, world, steps=5)
            seen["selective"] = train(start(mesh, checkpointing="selective"), rank, world, steps=5)
        if world == 4:
            hybrid = data_mesh("cpu", replicas=2)
            seen["hybrid"] = train(start(hybrid, muon, checkpointing="full"), rank, world, steps=10)
        if world == 2:
            half = start(mesh, precision="bf16", checkpointing="full")
            seen["bf16"] = train(half, rank, world, steps=10)
            seen["bf16_master"] = sorted({str(p.dtype) for p in half.model.parameters()})
        if rank == 0:
            torch.save(weights, folder / f"{world}.pt")
    return seen


@contextmanager
def counted_matrices() -> Iterator[list[int]]:
    """How many matrices this process orthogonalises at a time."""
    counts: list[int] = []
    module = importlib.import_module("ingot.model.sharded_muon")
    orthogonalize = module.orthogonalize

    def count(matrices: torch.Tensor) -> torch.Tensor:
        counts.append(len(matrices))
        return orthogonalize(matrices)

    module.orthogonalize = count
    yield counts
    module.orthogonalize = orthogonalize


def train_compiled(rank: int, folder: Path) -> dict[str, Any]:
    """By the compiler's front end: what its back end makes of the graphs takes it two minutes, cold."""
    torch.compile = functools.partial(torch.compile, backend="aot_eager")
    with meeting(folder, "meet-compiled", rank, 2) as mesh:
        state = start(mesh, muon, compile=True, checkpointing="selective")
        return {
            "compiled": train(state, rank, 2, steps=5),
            "eager": train(start(mesh, muon), rank, 2, steps=5),
        }


def run(rank: int, folder: Path, what: str) -> None:
    torch.set_num_threads(1)
    if what == "compiled":
        (folder / f"compiled-{rank}.json").write_text(json.dumps(train_compiled(rank, folder)))
        return
    for world in (4, 3, 2):
        if rank < world:
            (folder / f"{world}-{rank}.json").write_text(json.dumps(train_equally(rank, world, folder)))
    if rank == 3:
        (folder / "1-0.json").write_text(json.dumps(train_equally(0, 1, folder)))


def main(folder: Path, what: str) -> int:
    fork = multiprocessing.get_context("fork")
    ranks = range(2 if what == "compiled" else 4)
    processes = [fork.Process(target=run, args=(rank, folder, what), daemon=True) for rank in ranks]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    return max(abs(process.exitcode or 0) for process in processes)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2]))
