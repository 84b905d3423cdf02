"""AdamW, which parameters decay, and the learning rate."""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import Any, Literal

import torch
from torch import nn

Schedule = Literal["cosine", "warmup-stable-decay"]


def adamw(
    model: nn.Module,
    *,
    weight_decay: float = 0.1,
    betas: tuple[float, float] = (0.9, 0.95),
    epsilon: float = 1e-8,
) -> torch.optim.AdamW:
    """AdamW (arXiv:1711.05101) over the groups of `decay_groups`. The learning rate is the step's to set."""
    groups = decay_groups(model, weight_decay)
    return torch.optim.AdamW(groups, lr=0.0, betas=betas, eps=epsilon, fused=can_fuse(model))


def decay_groups(
    model: nn.Module, weight_decay: float, without: Collection[nn.Parameter] = ()
) -> list[dict[str, Any]]:
    """The parameters of a model, but for those named, in two groups: matrices decay, the rest does not.

    Decay keeps a matrix from growing and so its effective learning rate from shrinking. A norm's weight is
    a scale with the right value of 1, not 0. An embedding's row gets a gradient only when its token is
    seen, but would decay at every step: rare tokens would fade, and with small embeddings the gradients of
    the first layers grow (OLMo 2, arXiv:2501.00656, section 3.5).
    """
    passed = {id(parameter) for parameter in without}
    embeddings = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    named = [p for p in model.parameters() if id(p) not in passed]
    decayed = [p for p in named if p.dim() >= 2 and id(p) not in embeddings]
    others = [p for p in named if p.dim() < 2 or id(p) in embeddings]
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def can_fuse(model: nn.Module) -> bool:
    """Whether AdamW's update is one kernel here instead of a dozen small ones a parameter."""
    return all(parameter.device.type in ("cpu", "cuda") for parameter in model.parameters())


def learning_rate(
    step: int, steps: int, peak: float, warmup: int, decay: int, floor: float, schedule: Schedule
) -> float:
    """The learning rate of step `step` (from 0) of `steps`; that of the last step is exactly `floor`.

    It rises linearly to `peak` over the first `warmup` steps. Then `cosine` falls from `peak` to `floor` over
    all remaining steps (arXiv:1608.03983), and `decay` is not used; `warmup-stable-decay` stays at the peak
    and falls linearly over the last `decay` steps (arXiv:2404.06395), of which there is at least one: before
    them the rate does not depend on `steps`. `peak` and `floor` are learning rates, the others numbers of
    steps, with `warmup` < `steps`.
    """
    if step < warmup:
        return peak * ((step + 1) / warmup)
    if schedule == "cosine":
        falls = steps - 1 - warmup
        share = min(1.0, (step - warmup) / falls) if falls > 0 else 1.0
        left = (1 + math.cos(math.pi * share)) / 2
    else:
        assert schedule == "warmup-stable-decay", schedule
        decay = max(1, decay)
        left = max(0.0, (steps - 1 - step) / decay)
    # At the ends exactly the peak and the floor, where the sum would be off by its rounding.
    return peak if left >= 1 else floor + (peak - floor) * left
