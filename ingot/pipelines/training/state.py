"""A training's state as named tensors, and which rows of each this process holds.

Sharded parameters (FSDP2) are cut along their first dimension into ceil(rows / shards) rows each, the last
shards shorter or empty; the optimizer's tensors are cut like their parameters. Names are "parameter/<name>"
and, for the optimizer, "<its word>/<name>", such as "exp_avg/blocks.0.attention.query.weight"."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, Replicate, Shard


@dataclass(frozen=True)
class Part:
    """The rows [start, end) of a tensor of `shape`, as this process holds them in `local`."""

    local: Tensor
    shape: tuple[int, ...]
    start: int
    end: int


def part_of(tensor: Tensor) -> Part:
    """What this process holds of a tensor: all of a plain one, its shard of a sharded one."""
    shape = tuple(tensor.shape)
    if not isinstance(tensor, DTensor):
        return Part(tensor.detach(), shape, 0, shape[0])
    *replicas, shard = tensor.placements
    assert shard == Shard(0), f"sharded as {tensor.placements}"
    assert all(placement == Replicate() for placement in replicas), f"sharded as {tensor.placements}"
    axis = tensor.device_mesh.ndim - 1
    rows = -(-shape[0] // tensor.device_mesh.size(axis))
    start = min(shape[0], rows * tensor.device_mesh.get_local_rank(axis))
    local = tensor.detach().to_local()
    return Part(local, shape, start, start + (local.shape[0] if local.numel() else 0))


def named_state(
    model: torch.nn.Module, optimizer: torch.optim.Optimizer
) -> tuple[dict[str, Tensor], dict[str, float]]:
    """The tensors and the single numbers (AdamW counts its steps a parameter) by name. The tensors are the
    living ones, not copies."""
    tensors: dict[str, Tensor] = {}
    numbers: dict[str, float] = {}
    for name, parameter in model.named_parameters():
        tensors[f"parameter/{name}"] = parameter
        for word, value in optimizer.state[parameter].items():
            if value.dim():
                tensors[f"{word}/{name}"] = value
            else:
                numbers[f"{word}/{name}"] = value.item()
    return tensors, numbers


def make_room(
    model: torch.nn.Module, optimizer: torch.optim.Optimizer, names: list[str], numbers: dict[str, float]
) -> dict[str, Tensor]:
    """Gives the optimizer the state of these names, tensors of zeros and the numbers as given; the tensors
    of the whole state, to be filled."""
    parameters = dict(model.named_parameters())
    for parameter in parameters.values():
        optimizer.state[parameter] = {}
    for full_name in names:
        word, _, name = full_name.partition("/")
        if word != "parameter":
            optimizer.state[parameters[name]][word] = torch.zeros_like(parameters[name])
    for full_name, number in numbers.items():
        word, _, name = full_name.partition("/")
        # where the fused AdamW wants it: beside its parameter
        device = part_of(parameters[name]).local.device
        optimizer.state[parameters[name]][word] = torch.tensor(number, dtype=torch.float32, device=device)
    return named_state(model, optimizer)[0]


@torch.no_grad()
def copy_whole(parameter: Tensor, whole: Tensor) -> None:
    """Fills a parameter from its whole value; a sharded one takes its rows."""
    part = part_of(parameter)
    part.local.copy_(whole[part.start : part.end].reshape(part.local.shape))


def whole_tensor(tensor: Tensor) -> Tensor:
    """The whole value of a tensor, on every process; all must ask together."""
    return tensor.detach().full_tensor() if isinstance(tensor, DTensor) else tensor.detach()
