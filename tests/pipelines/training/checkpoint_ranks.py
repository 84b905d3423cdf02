"""Three processes that read and write checkpoints of one model; started by test_checkpoint.py.

python checkpoint_ranks.py RANK FOLDER

All three read what one process saved at `one` and save it at `three`. Two of them read that and save it at
`two`, sharded, and at `replicated`, with a whole copy each."""

from __future__ import annotations

import sys
from collections.abc import Callable

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh

from ingot.model import ModelConfig, TrainState, Transformer, adamw, muon, parallelize
from ingot.pipelines.store import LocalStore
from ingot.pipelines.training.checkpoint import CheckpointWriter, Place, load_checkpoint

# No dimension is a multiple of three, and a norm has fewer rows than there are processes.
CONFIG = ModelConfig(vocabulary=97, width=2, layers=2, heads=1, kv_heads=1, hidden=7, context=8)
STEP = 3
OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {"adamw": adamw, "muon": muon}


def copy(folder: str, source: str, target: str, mesh: DeviceMesh, place: Place) -> None:
    """With the state of either optimizer."""
    store = LocalStore(folder)
    for name, make in OPTIMIZERS.items():
        model = parallelize(Transformer(CONFIG), mesh)
        optimizer = make(model)
        load_checkpoint(store, f"{name}/{source}", STEP, model, optimizer)
        state = TrainState(model, optimizer, STEP)
        writer = CheckpointWriter(store, f"{name}/{target}", state, place, attempt=1, keep=1)
        writer.save({})
        writer.wait()


def main(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=3)
    three = DeviceMesh("cpu", torch.arange(3), mesh_dim_names=("shard",))
    two = DeviceMesh("cpu", torch.arange(2), mesh_dim_names=("shard",))
    replicas = DeviceMesh("cpu", torch.arange(2).view(2, 1), mesh_dim_names=("replicate", "shard"))
    copy(folder, "one", "three", three, Place(rank, 3))
    dist.barrier()
    if rank < 2:
        copy(folder, "three", "two", two, Place(rank, 2))
        copy(folder, "three", "replicated", replicas, Place(0, 1, replica=rank))
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
