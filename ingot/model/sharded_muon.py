"""Muon for the blocks' matrices, whole or in shards, and AdamW for everything else.

A matrix's step is its momentum with all singular values made equal (its orthogonal factor, by a few matrix
products), so that directions with small gradients are learnt as fast as those with large ones. That needs
the whole matrix, of which a process of a sharded model holds some rows. So the processes share the work:
each collects the rows of some of the matrices, as many as any other, orthogonalises those and sends the rows
of the result back: as much data in all as gathering the model once, and no matrix is done twice. Replicas of
the model repeat each other's work, so that nothing but gradients travels between them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from ingot.model.optimizer import can_fuse, decay_groups

POLYNOMIALS = (
    (8.156554524902461, -22.48329292557795, 15.878769915207462),
    (4.042929935166739, -2.808917465908714, 0.5000178451051316),
    (3.8916678022926607, -2.772484153217685, 0.5060648178503393),
    (3.285753657755655, -2.3681294933425376, 0.46449024233003106),
    (2.3465413258596377, -1.7097828382687081, 0.42323551169305323),
)
"""Of Polar Express (arXiv:2505.16932): a x + b x^3 + c x^5, one after the other. Singular values from 0.001
to 1 become 0.85 to 1.14. Keller Jordan's one polynomial, five times, leaves 0.47 to 1.20."""

HEADROOM = 1.02
"""What bf16 rounds upwards must not leave the interval on which the polynomials were made."""

ENTRIES_AT_ONCE = 2**27
"""Entries of the matrices that a process orthogonalises in one batch: 256 MiB in bf16, and some copies."""


class Muon(torch.optim.AdamW):
    """Muon (https://kellerjordan.github.io/posts/muon) for groups with a `momentum`, AdamW for the others.

    As in Moonlight (arXiv:2502.16982, section 2.2) an update is scaled by 0.2 * sqrt(the longer side), which
    gives its entries the root mean square that AdamW's have: one learning rate and one weight decay serve
    both. The momentum is Nesterov's. A parameter is a plain tensor or, after FSDP2, sharded by rows over the
    last axis of its mesh. State: `momentum_buffer` for a matrix, AdamW's for the rest.
    """

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        for group in self.param_groups:
            if "momentum" in group:
                self._step_matrices(group)
        super().step()

    def _step_matrices(self, group: dict[str, Any]) -> None:
        matrices: list[Tensor] = group["params"]
        for matrix in matrices:
            if not self.state[matrix]:
                self.state[matrix]["momentum_buffer"] = torch.zeros_like(matrix)
        shards = [local(matrix) for matrix in matrices]
        momenta = [local(self.state[matrix]["momentum_buffer"]) for matrix in matrices]
        updates = [local(matrix.grad) for matrix in matrices if matrix.grad is not None]
        torch._foreach_lerp_(momenta, updates, 1 - group["momentum"])
        torch._foreach_lerp_(updates, momenta, group["momentum"])
        torch._foreach_mul_(shards, 1 - group["lr"] * group["weight_decay"])
        done = 0
        for shape, numbers in by_shape(matrices).items():
            processes = shard_group(matrices[numbers[0]])
            world = processes.size() if processes else 1
            at_once = world * max(1, ENTRIES_AT_ONCE // math.prod(shape))
            for start in range(0, len(numbers), at_once):
                part = numbers[start : start + at_once]
                orthogonal = orthogonalize_shards([updates[n] for n in part], shape[0], processes, done)
                scale = 0.2 * math.sqrt(max(shape))
                torch._foreach_add_([shards[n] for n in part], orthogonal, alpha=-group["lr"] * scale)
                done += len(part)
        for matrix in matrices:
            matrix.grad = None  # so that AdamW's step passes over them


def muon(
    model: nn.Module,
    *,
    weight_decay: float = 0.1,
    momentum: float = 0.95,
    betas: tuple[float, float] = (0.9, 0.95),
    epsilon: float = 1e-8,
) -> Muon:
    """Muon for the matrices of `model.blocks`; AdamW, as `optimizer.adamw` has it, for the embedding, the
    output projection and the norms. The learning rate is the step's to set."""
    named = model.named_parameters()
    matrices = [p for name, p in named if name.startswith("blocks.") and p.dim() == 2]
    groups = [
        {"params": matrices, "weight_decay": weight_decay, "momentum": momentum},
        *decay_groups(model, weight_decay, without=matrices),
    ]
    return Muon(groups, lr=0.0, betas=betas, eps=epsilon, fused=can_fuse(model))


def orthogonalize(matrices_NRC: Tensor) -> Tensor:
    """N matrices of R rows and C columns with singular values near 1 in place of their own: the Newton-Schulz
    iteration, in the precision of what comes in. A matrix of zeros stays one."""
    tall = matrices_NRC.shape[1] > matrices_NRC.shape[2]
    x = matrices_NRC.mT if tall else matrices_NRC  # products of the shorter side are cheaper
    x = x / (HEADROOM * x.norm(dim=(1, 2), keepdim=True)).clamp(min=1e-7)
    for a, b, c in POLYNOMIALS:
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x


def orthogonalize_shards(
    shards: Sequence[Tensor], rows: int, processes: dist.ProcessGroup | None, first: int
) -> list[Tensor]:
    """This process's rows of each matrix, orthogonalised whole (see `orthogonalize`).

    The matrices have one shape, `rows` rows each; process s of S holds the rows from s * ceil(rows / S) on,
    ceil(rows / S) or what there is of them, which may be none. Matrix i is orthogonalised by process
    (first + i) mod S: counted on from shape to shape, the shares stay even.
    """
    # bf16 halves what is sent, and is what GPUs multiply fast; a CPU would only lose digits by it.
    precision = torch.bfloat16 if shards[0].is_cuda else torch.float32
    held_NHC = torch.stack([shard.to(precision) for shard in shards])
    if processes is None:
        return list(orthogonalize(held_NHC).to(shards[0].dtype))
    world, rank = processes.size(), processes.rank()
    each, columns = -(-rows // world), shards[0].shape[1]
    heights = [min(each, max(0, rows - each * process)) for process in range(world)]
    owners = [(first + number) % world for number in range(len(shards))]
    by_owner = sorted(range(len(shards)), key=owners.__getitem__)
    mine = owners.count(rank)
    held = [owners.count(process) * heights[rank] * columns for process in range(world)]
    collected = [mine * height * columns for height in heights]

    received = held_NHC.new_empty(sum(collected))
    dist.all_to_all_single(received, held_NHC[by_owner].flatten(), collected, held, group=processes)
    parts = zip(received.split(collected), heights, strict=True)
    whole_NRC = torch.cat([part.view(mine, height, columns) for part, height in parts], dim=1)
    if mine:
        whole_NRC = orthogonalize(whole_NRC)
    back = torch.cat([part.flatten() for part in whole_NRC.split(heights, dim=1)])
    received = held_NHC.new_empty(sum(held))
    dist.all_to_all_single(received, back, held, collected, group=processes)
    rows_NHC = received.view(held_NHC.shape).to(shards[0].dtype)
    return [rows_NHC[by_owner.index(number)] for number in range(len(shards))]


def by_shape(matrices: Sequence[Tensor]) -> dict[tuple[int, ...], list[int]]:
    """The numbers of the matrices of each shape, in their order."""
    numbers: dict[tuple[int, ...], list[int]] = {}
    for number, matrix in enumerate(matrices):
        numbers.setdefault(tuple(matrix.shape), []).append(number)
    return numbers


def local(tensor: Tensor) -> Tensor:
    """The rows of a tensor that this process holds."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def shard_group(tensor: Tensor) -> dist.ProcessGroup | None:
    """The processes that hold a tensor together; None where one holds all of it."""
    if not isinstance(tensor, DTensor):
        return None
    axis = tensor.device_mesh.ndim - 1
    return tensor.device_mesh.get_group(axis) if tensor.device_mesh.size(axis) > 1 else None
