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

CPU_ROWS = 512
"""Rows of logits computed at a time on a CPU: at a vocabulary of 4096 they stay in its cache. Measured on one
core (2048 tokens, width 128): 120 ms for both passes, against 147 ms in one piece."""


def cross_entropy(
    hidden_BTD: Tensor,
    weight_VD: Tensor,
    targets_BT: Tensor,
    *,
    chunk: int | None = None,
    compiled: bool = False,
) -> tuple[Tensor, Tensor]:
    """Negative log-likelihood (nats, fp32) of each target under softmax(hidden @ weight.T), and the logarithm
    of that softmax's denominator, which z-loss keeps near 0; both BT.

    0 where the target is `IGNORED`. When the batch has more than `LOGITS_KEPT` logits, or `chunk` is given,
    no more than a chunk of positions has its logits in memory at a time: the backward pass computes them
    again. The value and the gradients stay the same; the price is one more product with the output
    projection, 2% of a step at 1.2 billion parameters. `compiled` fuses the element-wise work on a chunk.
    """
    hidden_ND, targets_N = hidden_BTD.flatten(0, 1), targets_BT.flatten()
    most = LOGITS_KEPT // len(weight_VD)
    if chunk or len(targets_N) > most:
        rows = chunk or max(1, most)
        nll_N, log_z_N = ChunkedCrossEntropy.apply(hidden_ND, weight_VD, targets_N, rows, compiled)
    else:
        rows = CPU_ROWS if hidden_ND.device.type == "cpu" else most
        pieces = zip(hidden_ND.split(rows), targets_N.split(rows), strict=True)
        parts = [chunk_losses(hidden, weight_VD, targets) for hidden, targets in pieces]
        nll_N, log_z_N = (torch.cat(columns) for columns in zip(*parts, strict=True))
    # Written out, so that no gradient comes back from an ignored position either.
    ignored_BT = targets_BT == IGNORED
    nll_BT = torch.where(ignored_BT, 0.0, nll_N.view(targets_BT.shape))
    return nll_BT, torch.where(ignored_BT, 0.0, log_z_N.view(targets_BT.shape))


class ChunkedCrossEntropy(torch.autograd.Function):
    """Keeps no logits: each chunk of positions computes its own again in the backward pass."""

    @staticmethod
    def forward(
        ctx: Any, hidden_ND: Tensor, weight_VD: Tensor, targets_N: Tensor, rows: int, compiled: bool
    ) -> tuple[Tensor, ...]:
        ctx.save_for_backward(hidden_ND, weight_VD, targets_N)
        ctx.rows, ctx.compiled = rows, compiled
        compute = maybe_compiled(chunk_losses, compiled)
        weight = weight_VD.to(hidden_ND.dtype)
        chunks = zip(hidden_ND.split(rows), targets_N.split(rows), strict=True)
        parts = [compute(hidden, weight, targets) for hidden, targets in chunks]
        return tuple(torch.cat(columns) for columns in zip(*parts, strict=True))

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        hidden_ND, weight_VD, targets_N = ctx.saved_tensors
        compute = maybe_compiled(chunk_gradients, ctx.compiled)
        weight = weight_VD.to(hidden_ND.dtype)
        hidden_gradients = []
        # Summed over chunks in fp32: a dozen roundings to bf16 would cost the sum its last digits.
        weight_gradient_VD = torch.zeros_like(weight_VD, dtype=torch.float32)
        columns = (hidden_ND, targets_N, *upstream)
        for hidden, targets, *scales in zip(*(column.split(ctx.rows) for column in columns), strict=True):
            logits_gradient_NV = compute(hidden, weight, targets, *scales)
            hidden_gradients.append(logits_gradient_NV @ weight)
            weight_gradient_VD += logits_gradient_NV.T @ hidden
        return torch.cat(hidden_gradients), weight_gradient_VD.to(weight_VD.dtype), None, None, None


def chunk_losses(hidden_ND: Tensor, weight_VD: Tensor, targets_N: Tensor) -> tuple[Tensor, Tensor]:
    logits_NV = F.linear(hidden_ND, weight_VD.to(hidden_ND.dtype)).float()
    nll_N = F.cross_entropy(logits_NV, targets_N, ignore_index=IGNORED, reduction="none")
    # The denominator from the loss: no second pass over the logits, nor a gradient where none is asked for.
    return nll_N, nll_N + logits_NV.gather(1, targets_N.clamp(min=0)[:, None])[:, 0]


def chunk_gradients(
    hidden_ND: Tensor, weight_VD: Tensor, targets_N: Tensor, of_nll_N: Tensor, of_log_z_N: Tensor
) -> Tensor:
    """The logits' gradient in the precision of the hidden states: the softmax times both upstream gradients,
    less the loss's at the target."""
    probabilities_NV = F.linear(hidden_ND, weight_VD).float().softmax(dim=-1)
    one_hot_NV = torch.arange(len(weight_VD), device=targets_N.device) == targets_N[:, None]
    scaled_NV = probabilities_NV * (of_nll_N + of_log_z_N)[:, None] - one_hot_NV * of_nll_N[:, None]
    return scaled_NV.to(hidden_ND.dtype)


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
