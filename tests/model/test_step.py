import copy
import dataclasses
import functools
import math

import pytest
import torch
import torch.nn.functional as F

from ingot.model import (
    IGNORED,
    Batch,
    PreferenceBatch,
    TrainState,
    adamw,
    language_model_objective,
    logprobs,
    preference_objective,
    train_step,
)
from ingot.model.losses import dpo_loss


def fresh(model) -> TrainState:
    model = copy.deepcopy(model)
    return TrainState(model, adamw(model))


def cut(batch, rows):
    parts = zip(batch.tokens_BT.split(rows), batch.targets_BT.split(rows), strict=True)
    return [Batch(tokens, targets) for tokens, targets in parts]


def test_the_loss_is_the_mean_over_the_targets_that_count(model, make_batch):
    batch = make_batch(rows=4, ignored=[0, 15, 3, 16])
    logits = model(batch.tokens_BT)
    expected = F.cross_entropy(logits.flatten(0, 1), batch.targets_BT.flatten(), ignore_index=IGNORED)
    metrics = train_step(fresh(model), [batch], learning_rate=1e-3, clip=1.0)
    assert metrics.loss == pytest.approx(expected.item(), rel=1e-6)
    assert metrics.tokens == 16 + 1 + 13


def test_z_loss_moves_the_model_and_is_told_beside_the_cross_entropy(model, make_batch):
    batch = make_batch(rows=4, ignored=[0, 15, 3, 16])
    plain, with_z = fresh(model), fresh(model)
    penalised = functools.partial(language_model_objective, z_loss=0.2)
    expected = train_step(plain, [batch], learning_rate=1e-3, clip=1.0)
    metrics = train_step(with_z, [batch], learning_rate=1e-3, clip=1.0, objective=penalised)
    log_z = model(batch.tokens_BT).logsumexp(dim=-1)[batch.targets_BT != IGNORED]
    assert (metrics.loss, expected.extra) == (expected.loss, {})
    assert metrics.extra == pytest.approx({"z_loss": 0.2 * log_z.square().mean().item()}, rel=1e-5)
    assert metrics.gradient_norm != pytest.approx(expected.gradient_norm, rel=0.01)
    for _ in range(20):
        last = train_step(with_z, [batch], learning_rate=1e-2, clip=1.0, objective=penalised)
    assert last.extra["z_loss"] < 0.5 * metrics.extra["z_loss"]


def test_eight_microbatches_of_one_row_are_one_of_eight_rows(model, make_batch):
    whole, accumulated = fresh(model), fresh(model)
    for step in range(3):
        batch = make_batch(rows=8, seed=step, ignored=[0, 15, 3, 16, 0, 1, 0, 9])
        one = train_step(whole, [batch], learning_rate=1e-3, clip=0.5)
        eight = train_step(accumulated, cut(batch, 1), learning_rate=1e-3, clip=0.5)
        assert (one.loss, one.gradient_norm) == pytest.approx((eight.loss, eight.gradient_norm), rel=1e-5)
        assert one.tokens == eight.tokens
    assert whole.step == accumulated.step == 3
    torch.testing.assert_close(whole.model.state_dict(), accumulated.model.state_dict(), rtol=0, atol=1e-5)


def test_gradients_are_clipped_to_the_global_norm(model, make_batch):
    batch = make_batch(rows=2)
    model(batch.tokens_BT, batch.targets_BT).mean().backward()
    norm = torch.stack([p.grad.norm() for p in model.parameters()]).norm().item()
    before = copy.deepcopy(model.state_dict())
    for clip, share in ((math.inf, 1.0), (norm / 4, 0.25)):
        model.load_state_dict(before)
        state = TrainState(model, torch.optim.SGD(model.parameters(), lr=0.0))
        metrics = train_step(state, [batch], learning_rate=1.0, clip=clip)
        assert metrics.gradient_norm == pytest.approx(norm, rel=1e-4)
        moved = torch.stack([(p - before[n]).norm() for n, p in model.named_parameters()]).norm().item()
        assert moved == pytest.approx(share * norm, rel=1e-4)


def test_a_loss_that_is_not_finite_stops_the_step_and_changes_nothing(model, make_batch):
    state = fresh(model)
    train_step(state, [make_batch(rows=2)], learning_rate=1e-3, clip=1.0)
    with torch.no_grad():
        state.model.norm.weight[3] = math.nan
    before = copy.deepcopy((state.model.state_dict(), state.optimizer.state_dict()["state"]))
    with pytest.raises(FloatingPointError, match="step 1: loss nan"):
        train_step(state, [make_batch(rows=2)], learning_rate=1e-3, clip=1.0)
    after = (state.model.state_dict(), state.optimizer.state_dict()["state"])
    torch.testing.assert_close(before, after, rtol=0, atol=0, equal_nan=True)
    assert state.step == 1


def test_a_batch_in_which_nothing_counts_is_refused(model, make_batch):
    with pytest.raises(ValueError, match="no target"):
        train_step(fresh(model), [make_batch(rows=1, ignored=[16])], learning_rate=1e-3, clip=1.0)


def test_one_batch_is_learnt_by_heart(model, make_batch):
    state, batch = fresh(model), make_batch(rows=2)
    for _ in range(150):
        loss = train_step(state, [batch], learning_rate=1e-2, clip=1.0).loss
        if loss < 0.01:
            break
    assert loss < 0.01


def make_pairs(model, make_batch) -> PreferenceBatch:
    """Three pairs with answers of different lengths, and one that is padding."""
    batch = make_batch(rows=8, ignored=[3, 9, 15, 16, 8, 2, 5, 16])
    sums, _ = logprobs(model, batch.tokens_BT, batch.targets_BT)
    return PreferenceBatch(batch.tokens_BT, batch.targets_BT, *sums.chunk(2))


@pytest.mark.parametrize("average", [False, True])
def test_preference_training_starts_at_ln_2_and_learns_to_prefer_the_chosen(model, make_batch, average):
    state, pairs = fresh(model), make_pairs(model, make_batch)
    objective = preference_objective(beta=2.0 if average else 0.1, average=average)
    first = train_step(state, [pairs], learning_rate=1e-3, clip=1.0, objective=objective)
    assert first.loss == pytest.approx(math.log(2), abs=1e-5)
    assert first.tokens == (13 + 7 + 1) + (8 + 14 + 11)
    for _ in range(10):
        last = train_step(state, [pairs], learning_rate=1e-3, clip=1.0, objective=objective)
    assert last.loss < 0.9 * first.loss
    assert last.extra["reward_accuracy"] == 1.0
    margin = last.extra["chosen_reward"] - last.extra["rejected_reward"]
    assert last.extra["reward_margin"] == pytest.approx(margin, rel=1e-5)


def test_preference_loss_is_the_mean_of_dpo_losses_over_the_pairs(model, make_batch):
    pairs = make_pairs(model, make_batch)
    shifted = dataclasses.replace(pairs, reference_chosen_P=pairs.reference_chosen_P + torch.arange(4.0))
    (chosen, rejected), (nc, nr) = (
        part.chunk(2) for part in logprobs(model, shifted.tokens_BT, shifted.targets_BT)
    )
    losses, *_ = dpo_loss(
        chosen, rejected, shifted.reference_chosen_P, shifted.reference_rejected_P, 3.0, 0.1, nc, nr, True
    )
    objective = preference_objective(beta=3.0, average=True, label_smoothing=0.1)
    metrics = train_step(fresh(model), [shifted], learning_rate=0.0, clip=1.0, objective=objective)
    assert metrics.loss == pytest.approx(losses[:3].mean().item(), rel=1e-5)
