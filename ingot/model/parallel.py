"""How a model is spread over processes and made fast: the whole recipe, in the order it is applied.

With a process a device and torch.distributed initialised:

    mesh = data_mesh("cuda")
    with torch.device("meta"):
        model = Transformer(config)  # shapes without memory
    parallelize(model, mesh, precision="bf16", compile=True)
    model.to_empty(device="cuda")  # each process allocates its shards alone
    model.init_weights(seed)  # or load a checkpoint
    optimizer = adamw(model)  # over shards
"""

from __future__ import annotations

import functools
from typing import Literal

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.utils.checkpoint import checkpoint

from ingot.model.transformer import Transformer

Precision = Literal["fp32", "bf16"]
Checkpointing = Literal["none", "full"]


def data_mesh(device: str, replicas: int = 1) -> DeviceMesh:
    """All processes as one axis over which the model is sharded or, with `replicas`, as so many groups.

    Each group holds one sharded model and gradients are summed over the groups: with a group a node, only
    gradients travel between nodes. Raises ValueError when the replicas do not divide the processes.
    """
    world = dist.get_world_size()
    if replicas == 1:
        return init_device_mesh(device, (world,), mesh_dim_names=("shard",))
    if replicas < 1 or world % replicas:
        raise ValueError(f"replicas: {replicas} does not divide the {world} processes")
    return init_device_mesh(device, (replicas, world // replicas), mesh_dim_names=("replicate", "shard"))


def parallelize(
    model: Transformer,
    mesh: DeviceMesh | None = None,
    precision: Precision = "fp32",
    compile: bool = False,
    checkpointing: Checkpointing = "none",
) -> Transformer:
    """Prepares `model` in place for training on `mesh` (see `data_mesh`), or in this process alone.

    Parameters, gradients and optimizer state stay fp32; `precision` is that of the matrix products.
    Gradients are *sums* over the processes: the train step divides them by the global number of targets,
    which no process knows alone.
    """
    # 1. Compilation, block by block: the blocks share one compiled graph, so it takes seconds whatever the
    #    depth. The function is compiled rather than the module, whose call also runs FSDP's hooks: they
    #    gather the next block's parameters while this one computes.
    if compile:
        for block in model.blocks:
            block.forward = torch.compile(block.forward, fullgraph=True)
        model.compile_loss = True

    # 2. Activation checkpointing: a block keeps its input only and runs again in the backward pass. A third
    #    more computation for about a tenth of the memory. Again the function, so that parameters keep their
    #    names.
    if checkpointing == "full":
        for block in model.blocks:
            block.forward = functools.partial(checkpoint, block.forward, use_reentrant=False)

    # 3. Precision. Weights are cast where they are used (transformer.Linear), or already when they are
    #    gathered from the shards, which halves what travels.
    model.compute_dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]
    if mesh is None:
        return model
    # The rotation's angles are an input of every block and must stay fp32: no casting of inputs.
    policy = MixedPrecisionPolicy(
        param_dtype=model.compute_dtype, reduce_dtype=torch.float32, cast_forward_inputs=False
    )

    # 4. Sharding: a block is gathered before it runs and freed after; what is left (embedding, last norm,
    #    output projection) belongs to the root, which stays gathered from its forward to its backward.
    for block in model.blocks:
        fully_shard(block, mesh=mesh, mp_policy=policy)
    fully_shard(model, mesh=mesh, mp_policy=policy)
    for module in model.modules():
        if isinstance(module, FSDPModule):
            # FSDP's default is the mean. A plain sum, rather than a sum of scaled terms, runs on gloo too.
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)
    model.register_forward_hook(free_root)
    return model


def free_root(model: nn.Module, inputs: object, output: object) -> None:
    """After a forward pass that no backward pass will follow, the root's parameters become shards again.

    FSDP leaves them gathered for the backward pass; an optimizer made then would hold the gathered copies.
    """
    if not torch.is_grad_enabled():
        assert isinstance(model, FSDPModule)
        model.reshard()
