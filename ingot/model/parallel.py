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
from contextlib import AbstractContextManager
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.utils.checkpoint import (
    CheckpointPolicy,
    SelectiveCheckpointContext,
    checkpoint,
    create_selective_checkpoint_contexts,
)

from ingot.model.config import divisors, nearest
from ingot.model.transformer import Transformer

Precision = Literal["fp32", "bf16"]
Checkpointing = Literal["none", "selective", "full"]


def data_mesh(device: str, replicas: int = 1) -> DeviceMesh:
    """All processes as one axis over which the model is sharded or, with `replicas`, as so many groups.

    Each group holds one sharded model and gradients are summed over the groups: with a group a node, only
    gradients travel between nodes. Raises ValueError when the replicas do not divide the processes.
    """
    world = dist.get_world_size()
    if replicas == 1:
        return init_device_mesh(device, (world,), mesh_dim_names=("shard",))
    if replicas < 1 or world % replicas:
        fits = nearest(replicas, divisors(world))
        raise ValueError(f"replicas: {replicas} does not divide the {world} processes; nearest: {fits}")
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
    # 1. Activation checkpointing. The function is wrapped rather than the module, so that parameters keep
    #    their names. Full: a block keeps its input only and runs again in the backward pass, a third more
    #    computation for about a tenth of the memory. Selective: it also keeps what was dear to compute, and
    #    runs all else again.
    if checkpointing != "none":
        keep = {"context_fn": keep_what_is_dear} if checkpointing == "selective" else {}
        for block in model.blocks:
            block.forward = functools.partial(checkpoint, block.forward, use_reentrant=False, **keep)

    # 2. Compilation, block by block: the blocks share one compiled graph, so it takes seconds whatever the
    #    depth. Around the checkpointing, which the compiler then plans for: it could not look into a compiled
    #    function to tell its products. Not around the module, whose call also runs FSDP's hooks: they gather
    #    the next block's parameters while this one computes.
    if compile:
        for block in model.blocks:
            block.forward = torch.compile(block.forward, fullgraph=True)
        model.compile_loss = True

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


def keep_what_is_dear() -> tuple[AbstractContextManager[Any], AbstractContextManager[Any]]:
    """What selective checkpointing does in the forward pass and when a block runs again: the results of
    matrix products with weights and of attention are kept. They are nearly all of the computation; norms,
    rotations, the gate's product, casts and sums cost reading and writing only."""
    return create_selective_checkpoint_contexts(policy)


def policy(
    context: SelectiveCheckpointContext, operator: Any, *inputs: Any, **options: Any
) -> CheckpointPolicy:
    # By name: the kernels of attention are many, and those of installed packages are operators of their
    # own. Where there is none, attention's own products (bmm) are not kept: they grow with a row's square.
    name = str(operator)
    dear = operator is torch.ops.aten.mm.default or "attention" in name or "attn" in name
    return CheckpointPolicy.MUST_SAVE if dear else CheckpointPolicy.PREFER_RECOMPUTE


def free_root(model: nn.Module, inputs: object, output: object) -> None:
    """After a forward pass that no backward pass will follow, the root's parameters become shards again.

    FSDP leaves them gathered for the backward pass; an optimizer made then would hold the gathered copies.
    """
    if not torch.is_grad_enabled():
        assert isinstance(model, FSDPModule)
        model.reshard()
