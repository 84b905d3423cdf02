"""One training step: a function of a state and a batch, that knows nothing of loops, files or clusters."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from torch.nn.utils import get_total_norm

from ingot.model.losses import IGNORED, dpo_loss, row_logprobs
from ingot.model.transformer import Transformer


@dataclass
class TrainState:
    """What a step changes."""

    model: Transformer
    optimizer: torch.optim.Optimizer
    step: int = 0
    """Steps taken so far."""


@dataclass(frozen=True)
class Batch:
    """Rows of tokens and, at each position, the token to predict (`IGNORED`, -100, where none counts)."""

    tokens_BT: Tensor
    targets_BT: Tensor
    documents_BT: Tensor | None = field(default=None, kw_only=True)
    """For rows that are packed from several documents: int32, the number of the document within its row,
    from 0 and never falling along the row. Positions with equal numbers may attend to each other, and
    positions are counted anew where the number changes. Padding at a row's end has a number of its own. None:
    each row is one document."""


@dataclass(frozen=True)
class PreferenceBatch(Batch):
    """P pairs: the first P rows hold the chosen answers, the last P the rejected ones, in the same order.

    Targets count on the answers alone. The reference log-probabilities, P each, are the answers' sums under
    the model that training began with. A pair without any targets is padding and weighs nothing.
    """

    reference_chosen_P: Tensor
    reference_rejected_P: Tensor


@dataclass(frozen=True)
class StepMetrics:
    """What a step saw; the same on every process."""

    loss: float
    """Mean over the global batch: nats a target, or the objective's loss a unit of its weight."""
    gradient_norm: float
    """Norm of that mean's gradient, before clipping."""
    tokens: int
    """Targets that counted, in the global batch."""
    extra: dict[str, float] = field(default_factory=dict)
    """The objective's own metrics: means like the loss."""


Objective = Callable[[Transformer, Batch], tuple[Tensor, Tensor, dict[str, Tensor]]]
"""(model, batch) -> (sum of losses, summed weight, sums of metrics): scalars, the first with a gradient. A
metric named `loss` is what is told as the loss, where more than that is minimised."""


def language_model_objective(
    model: Transformer, batch: Batch, z_loss: float = 0.0
) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Next-token prediction; the weight is the number of targets that count.

    With `z_loss` (see `losses.summed_cross_entropy`), which keeps logits from drifting away, the loss that is
    told stays the cross-entropy, and the rest is told as the metric `z_loss`.
    """
    total, nll, penalty = model(
        batch.tokens_BT, batch.targets_BT, documents_BT=batch.documents_BT, summed=True, z_loss=z_loss
    )
    weight = (batch.targets_BT != IGNORED).sum()
    return total, weight, {"loss": nll, "z_loss": penalty} if z_loss else {}


def preference_objective(beta: float, average: bool = False, label_smoothing: float = 0.0) -> Objective:
    """Direct preference optimisation over `PreferenceBatch`es (see `losses.dpo_loss`); weighs pairs.

    Metrics: `reward_accuracy`, the share of pairs whose chosen answer has the higher reward,
    `reward_margin`, and the two rewards.
    """

    def objective(model: Transformer, batch: Batch) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        assert isinstance(batch, PreferenceBatch)
        nll_BT = model(batch.tokens_BT, batch.targets_BT, documents_BT=batch.documents_BT)
        logprobs, tokens = row_logprobs(nll_BT, batch.targets_BT)
        (chosen, rejected), (chosen_tokens, rejected_tokens) = logprobs.chunk(2), tokens.chunk(2)
        real = (chosen_tokens > 0) & (rejected_tokens > 0)
        losses, chosen_rewards, rejected_rewards = dpo_loss(
            chosen,
            rejected,
            batch.reference_chosen_P,
            batch.reference_rejected_P,
            beta,
            label_smoothing,
            chosen_tokens.clamp(min=1),
            rejected_tokens.clamp(min=1),
            average,
        )
        sums = {
            "reward_accuracy": chosen_rewards > rejected_rewards,
            "reward_margin": chosen_rewards - rejected_rewards,
            "chosen_reward": chosen_rewards,
            "rejected_reward": rejected_rewards,
        }
        return (losses * real).sum(), real.sum(), {name: (value * real).sum() for name, value in sums.items()}

    return objective


def train_step(
    state: TrainState,
    microbatches: Sequence[Batch],
    *,
    learning_rate: float,
    clip: float,
    objective: Objective = language_model_objective,
) -> StepMetrics:
    """Takes one optimizer step on the global batch: all `microbatches` of all processes that share the model.

    The loss is the mean over everything that counts in the global batch, however it is cut: each target
    weighs the same on whichever process and in whichever microbatch it lies. Gradients are clipped to the
    global norm `clip` (`math.inf`: not at all). Every process must bring the same number of microbatches.

    Raises FloatingPointError, on all processes and with the state as it was, when the loss or the gradient
    is not finite, and ValueError when no target of the global batch counts.
    """
    model, optimizer = state.model, state.optimizer
    sharded = isinstance(model, FSDPModule)
    optimizer.zero_grad(set_to_none=True)
    totals: dict[str, Tensor] = {}
    for number, batch in enumerate(microbatches, start=1):
        if sharded:
            # Every microbatch's gradients are reduced to shards at once: to wait for the last would keep
            # whole gradients. Only the sum over replicas of the model, if there are any, waits.
            model.set_requires_all_reduce(number == len(microbatches))
            model.set_is_last_backward(number == len(microbatches))
        loss_sum, weight, sums = objective(model, batch)
        loss_sum.backward()
        tokens = (batch.targets_BT != IGNORED).sum()
        for name, value in {"loss": loss_sum, "weight": weight, "tokens": tokens, **sums}.items():
            totals[name] = totals.get(name, 0) + value.detach().double()

    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    norm = get_total_norm(gradients, foreach=True)
    if isinstance(norm, DTensor):
        norm = norm.full_tensor()
    sums_N = torch.stack(list(totals.values()))
    if sharded:
        dist.all_reduce(sums_N)
    # The one moment a step waits for the device: what follows needs the numbers.
    norm_of_sum, *values = torch.cat((norm.double().reshape(1), sums_N)).tolist()
    means = dict(zip(totals, values, strict=True))
    weight_of_batch, tokens_of_batch = means.pop("weight"), int(means.pop("tokens"))
    if weight_of_batch == 0:
        raise ValueError(f"step {state.step}: no target of the global batch counts (all are {IGNORED})")
    means = {name: value / weight_of_batch for name, value in means.items()}
    loss, gradient_norm = means.pop("loss"), norm_of_sum / weight_of_batch
    if not (math.isfinite(loss) and math.isfinite(gradient_norm)):
        optimizer.zero_grad(set_to_none=True)
        raise FloatingPointError(
            f"step {state.step}: loss {loss}, gradient norm {gradient_norm} over {tokens_of_batch} targets; "
            f"nothing was changed; lower learning_rate, or clip more"
        )

    # From sums to means, and to a norm of at most `clip`, in one pass over the gradients.
    torch._foreach_mul_(gradients, min(1.0, clip / max(gradient_norm, 1e-12)) / weight_of_batch)
    for parameters in optimizer.param_groups:
        parameters["lr"] = learning_rate
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    state.step += 1
    return StepMetrics(loss, gradient_norm, tokens_of_batch, means)
