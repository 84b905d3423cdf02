"""Losses as pure functions: tensors in, tensors out, no model in sight."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

IGNORED = -100
"""The target of a position that does not count (padding, a prompt, the other speaker's words)."""

LOGITS_KEPT = 2**27
"""How many logits a batch may keep for its backward pass: 512 MiB of fp32. 16,384 tokens over a vocabulary
of 32,768 are four times as many, and there would be several copies of them."""

CPU_LOGITS = 2**23
CPU_ROWS = 512
"""How many logits are computed at a time on a CPU, and of how many positions at most: the fewer, the more of
them are still in its caches when they are used. Measured on one core, all products and both passes, beside
PyTorch's functions: 1.85 s against 2.77 s (2048 tokens, width 256, vocabulary 32,768), 83 ms against 96 ms
(1536, 128, 4096)."""


def summed_cross_entropy(
    hidden_BTD: Tensor,
    weight_VD: Tensor,
    targets_BT: Tensor,
    *,
    z_loss: float = 0.0,
    chunk: int | None = None,
    compiled: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """What a language model minimises: the negative log-likelihood (nats, fp32) of all targets under
    softmax(hidden @ weight.T), and `z_loss` times the squared logarithm of each softmax's denominator (PaLM,
    arXiv:2204.02311, section 5); their sum, which has a gradient, and both alone.

    As nothing but a scalar comes back in the backward pass, the gradient is computed in the forward pass
    while a chunk's logits are there: none are kept and none are computed again. 0 where the target is
    `IGNORED`. A chunk has `chunk` positions, or as many as `LOGITS_KEPT` or a CPU's caches ask for.
    `compiled` fuses the element-wise work on a chunk.
    """
    hidden_ND, targets_N = hidden_BTD.flatten(0, 1), targets_BT.flatten()
    on_cpu = hidden_ND.device.type == "cpu"
    most = min(CPU_ROWS, CPU_LOGITS // len(weight_VD)) if on_cpu else LOGITS_KEPT // len(weight_VD)
    rows, keep = chunk or max(1, most), torch.is_grad_enabled()
    total, nll, penalty = SummedCrossEntropy.apply(
        hidden_ND, weight_VD, targets_N, z_loss, rows, compiled, keep
    )
    return total, nll, penalty


class SummedCrossEntropy(torch.autograd.Function):
    """The loss and, computed with it, its gradient, which the backward pass only scales."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden_ND: Tensor,
        weight_VD: Tensor,
        targets_N: Tensor,
        z_loss: float,
        rows: int,
        compiled: bool,
        with_gradient: bool,
    ) -> tuple[Tensor, Tensor, Tensor]:
        plain = hidden_ND.device.type == "cpu" and hidden_ND.dtype == weight_VD.dtype
        sums = summed_on_cpu if plain else summed
        nll, penalty, *gradients = sums(
            hidden_ND, weight_VD, targets_N, z_loss, rows, compiled, with_gradient
        )
        ctx.save_for_backward(*gradients)
        ctx.mark_non_differentiable(nll, penalty)
        return nll + penalty, nll, penalty

    @staticmethod
    def backward(ctx: Any, upstream: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        hidden_gradient_ND, weight_gradient_VD = ctx.saved_tensors
        # In place: they are this function's own, and nobody's after it.
        of_hidden, of_weight = hidden_gradient_ND.mul_(upstream), weight_gradient_VD.mul_(upstream)
        return of_hidden, of_weight, None, None, None, None, None


def summed(
    hidden_ND: Tensor,
    weight_VD: Tensor,
    targets_N: Tensor,
    z_loss: float,
    rows: int,
    compiled: bool,
    with_gradient: bool,
) -> tuple[Tensor, ...]:
    """Both sums and, `with_gradient`, the gradients of hidden states and weights."""
    compute = maybe_compiled(chunk_sums, compiled)
    weight = weight_VD.to(hidden_ND.dtype)
    sums, hidden_gradients = [], []
    # Summed over chunks in fp32: a dozen roundings to bf16 would cost the sum its last digits.
    weight_gradient_VD = torch.zeros_like(weight_VD, dtype=torch.float32) if with_gradient else weight_VD
    for hidden, targets in zip(hidden_ND.split(rows), targets_N.split(rows), strict=True):
        *both, logits_gradient_NV = compute(hidden, weight, targets, z_loss)
        sums.append(torch.stack(both))
        if with_gradient:
            hidden_gradients.append(logits_gradient_NV @ weight)
            weight_gradient_VD += logits_gradient_NV.T @ hidden
    nll, penalty = torch.stack(sums).sum(dim=0).unbind()
    if not with_gradient:
        return nll, penalty
    return nll, penalty, torch.cat(hidden_gradients), weight_gradient_VD.to(weight_VD.dtype)


def chunk_sums(
    hidden_ND: Tensor, weight_VD: Tensor, targets_N: Tensor, z_loss: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Both sums of a chunk, and the logits' gradient in the precision of the hidden states."""
    logits_NV = F.linear(hidden_ND, weight_VD).float()
    counts_N, places_N = targets_N != IGNORED, targets_N.clamp(min=0)
    log_z_N = logits_NV.logsumexp(dim=-1)
    nll_N = log_z_N - logits_NV.gather(1, places_N[:, None])[:, 0]
    penalty_N = z_loss * log_z_N.square()
    one_hot_NV = torch.arange(len(weight_VD), device=targets_N.device) == places_N[:, None]
    softmax_NV = (logits_NV - log_z_N[:, None]).exp() * (1 + 2 * z_loss * log_z_N)[:, None]
    gradient_NV = torch.where(counts_N[:, None], softmax_NV - one_hot_NV.float(), 0.0)
    nll, penalty = ((each * counts_N).sum() for each in (nll_N, penalty_N))
    return nll, penalty, gradient_NV.to(hidden_ND.dtype)


def summed_on_cpu(
    hidden_ND: Tensor,
    weight_VD: Tensor,
    targets_N: Tensor,
    z_loss: float,
    rows: int,
    compiled: bool,
    with_gradient: bool,
) -> tuple[Tensor, ...]:
    """The same with fewer passes over the logits, which stay in one buffer: exponentials are not divided by
    their sum nor diminished by one at the target, but what is narrower is, the hidden states and what comes
    of the products. Positions that don't count take no part."""
    counted = (targets_N != IGNORED).nonzero()[:, 0]
    hidden_MD, targets_M = hidden_ND[counted], targets_N[counted]
    logits = hidden_ND.new_empty(min(rows, len(counted)), len(weight_VD))
    of_hidden_MD, scaled_MD = torch.empty_like(hidden_MD), torch.empty_like(hidden_MD)
    weight_gradient_VD = torch.zeros_like(weight_VD) if with_gradient else weight_VD
    nll, penalty = hidden_ND.new_zeros(()), hidden_ND.new_zeros(())
    for start in range(0, len(counted), rows):
        part = slice(start, start + rows)
        hidden, targets = hidden_MD[part], targets_M[part]
        own = torch.mm(hidden, weight_VD.T, out=logits[: len(hidden)])
        at_target, largest = own.gather(1, targets[:, None]), own.amax(dim=1, keepdim=True)
        sums = own.sub_(largest).exp_().sum(dim=1, keepdim=True)
        log_z = sums.log() + largest
        nll += (log_z - at_target).sum()
        penalty += z_loss * log_z.square().sum()
        if with_gradient:
            scale = (1 + 2 * z_loss * log_z) / sums
            of_hidden_MD[part] = (own @ weight_VD).mul_(scale).sub_(weight_VD[targets])
            weight_gradient_VD.addmm_(own.T, torch.mul(hidden, scale, out=scaled_MD[part]))
    if not with_gradient:
        return nll, penalty
    weight_gradient_VD.index_add_(0, targets_M, hidden_MD, alpha=-1)
    hidden_gradient_ND = torch.zeros_like(hidden_ND).index_copy_(0, counted, of_hidden_MD)
    return nll, penalty, hidden_gradient_ND, weight_gradient_VD


def cross_entropy(
    hidden_BTD: Tensor,
    weight_VD: Tensor,
    targets_BT: Tensor,
    *,
    chunk: int | None = None,
    compiled: bool = False,
) -> Tensor:
    """Negative log-likelihood (nats, BT in fp32) of each target under softmax(hidden @ weight.T), for who
    weighs them one by one.

    0 where the target is `IGNORED`. When the batch has more than `LOGITS_KEPT` logits, or `chunk` is given,
    no more than a chunk of positions has its logits in memory at a time: the backward pass computes them
    again. The value and the gradients stay the same; the price is one more product with the output
    projection. `compiled` fuses the element-wise work on a chunk.
    """
    hidden_ND, targets_N = hidden_BTD.flatten(0, 1), targets_BT.flatten()
    most = LOGITS_KEPT // len(weight_VD)
    if chunk or len(targets_N) > most:
        rows = chunk or max(1, most)
        nll_N = ChunkedCrossEntropy.apply(hidden_ND, weight_VD, targets_N, rows, compiled)
    else:
        rows = CPU_ROWS if hidden_ND.device.type == "cpu" else most
        pieces = zip(hidden_ND.split(rows), targets_N.split(rows), strict=True)
        nll_N = torch.cat([chunk_losses(hidden, weight_VD, targets) for hidden, targets in pieces])
    # Written out, so that no gradient comes back from an ignored position either.
    return torch.where(targets_BT == IGNORED, 0.0, nll_N.view(targets_BT.shape))


class ChunkedCrossEntropy(torch.autograd.Function):
    """Keeps no logits: each chunk of positions computes its own again in the backward pass."""

    @staticmethod
    def forward(
        ctx: Any, hidden_ND: Tensor, weight_VD: Tensor, targets_N: Tensor, rows: int, compiled: bool
    ) -> Tensor:
        ctx.save_for_backward(hidden_ND, weight_VD, targets_N)
        ctx.rows, ctx.compiled = rows, compiled
        compute = maybe_compiled(chunk_losses, compiled)
        weight = weight_VD.to(hidden_ND.dtype)
        chunks = zip(hidden_ND.split(rows), targets_N.split(rows), strict=True)
        return torch.cat([compute(hidden, weight, targets) for hidden, targets in chunks])

    @staticmethod
    def backward(ctx: Any, upstream_N: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        hidden_ND, weight_VD, targets_N = ctx.saved_tensors
        compute = maybe_compiled(chunk_gradients, ctx.compiled)
        weight = weight_VD.to(hidden_ND.dtype)
        hidden_gradients = []
        weight_gradient_VD = torch.zeros_like(weight_VD, dtype=torch.float32)
        columns = (hidden_ND, targets_N, upstream_N)
        for hidden, targets, scale in zip(*(column.split(ctx.rows) for column in columns), strict=True):
            logits_gradient_NV = compute(hidden, weight, targets, scale)
            hidden_gradients.append(logits_gradient_NV @ weight)
            weight_gradient_VD += logits_gradient_NV.T @ hidden
        return torch.cat(hidden_gradients), weight_gradient_VD.to(weight_VD.dtype), None, None, None


def chunk_losses(hidden_ND: Tensor, weight_VD: Tensor, targets_N: Tensor) -> Tensor:
    logits_NV = F.linear(hidden_ND, weight_VD.to(hidden_ND.dtype)).float()
    return F.cross_entropy(logits_NV, targets_N, ignore_index=IGNORED, reduction="none")


def chunk_gradients(hidden_ND: Tensor, weight_VD: Tensor, targets_N: Tensor, upstream_N: Tensor) -> Tensor:
    """The logits' gradient in the precision of the hidden states: softmax less one-hot, times upstream."""
    probabilities_NV = F.linear(hidden_ND, weight_VD).float().softmax(dim=-1)
    one_hot_NV = torch.arange(len(weight_VD), device=targets_N.device) == targets_N[:, None]
    return ((probabilities_NV - one_hot_NV.float()) * upstream_N[:, None]).to(hidden_ND.dtype)


@functools.cache
def maybe_compiled(function: Callable[..., Any], compiled: bool) -> Callable[..., Any]:
    # A chunk's work is compiled, not the loop over chunks: there the compiler would see the same product in
    # both passes and keep all logits to save the second.
    return torch.compile(function) if compiled else function


def row_logprobs(nll_BT: Tensor, targets_BT: Tensor) -> tuple[Tensor, Tensor]:
    """Each row's summed log-probability (nats) and the number of its targets that count; both B, fp32."""
    return -nll_BT.sum(dim=-1), (targets_BT != IGNORED).sum(dim=-1).float()


def dpo_loss(
    policy_chosen: Tensor,
    policy_rejected: Tensor,
    reference_chosen: Tensor,
    reference_rejected: Tensor,
    beta: float,
    label_smoothing: float = 0.0,
    chosen_tokens: Tensor | None = None,
    rejected_tokens: Tensor | None = None,
    average: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """Direct preference optimisation (arXiv:2305.18290): losses, chosen and rejected rewards of pairs.

    Takes the summed log-probabilities of the answers under the policy and the reference. A reward is beta
    times an answer's log-ratio of the two; the loss is the negative log-likelihood that the chosen answer
    wins, -log sigmoid(chosen reward - rejected reward). `average` divides each log-ratio by the number of
    the answer's tokens first, so that length earns nothing (Tulu 3, arXiv:2411.15124, section 5.1.2; then
    beta is larger, 5 there). `label_smoothing` is the share of pairs believed to be labelled the wrong way
    round (conservative DPO, https://ericmitchell.ai/cdpo.pdf).
    """
    chosen_ratios = policy_chosen - reference_chosen
    rejected_ratios = policy_rejected - reference_rejected
    if average:
        assert chosen_tokens is not None, "an average needs the numbers of tokens"
        assert rejected_tokens is not None, "an average needs the numbers of tokens"
        chosen_ratios = chosen_ratios / chosen_tokens
        rejected_ratios = rejected_ratios / rejected_tokens
    chosen_rewards, rejected_rewards = beta * chosen_ratios, beta * rejected_ratios
    margins = chosen_rewards - rejected_rewards
    losses = -(1 - label_smoothing) * F.logsigmoid(margins) - label_smoothing * F.logsigmoid(-margins)
    return losses, chosen_rewards, rejected_rewards
