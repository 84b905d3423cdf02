import random

import pytest
import torch

from ingot.model import TrainState, Transformer, adamw, learning_rate, muon, train_step
from ingot.model.sharded_muon import orthogonalize


@pytest.mark.parametrize("make", [adamw, muon])
def test_matrices_decay_and_norms_and_embeddings_do_not(model, make):
    optimizer = make(model, weight_decay=0.2)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = optimizer.param_groups
    decays = {names[id(p)]: group["weight_decay"] for group in groups for p in group["params"]}
    assert decays.keys() == set(names.values())
    for name, decay in decays.items():
        assert decay == (0.0 if "norm" in name or "embedding" in name else 0.2), name


def test_cosine_rises_in_a_line_and_falls_to_the_floor():
    rates = [learning_rate(step, 101, 1.0, 10, 0, 0.1, "cosine") for step in range(102)]
    assert rates[:10] == pytest.approx([(step + 1) / 10 for step in range(10)])
    assert rates[10] == 1.0
    assert rates[55] == pytest.approx(0.55)
    assert rates[100] == rates[101] == 0.1
    assert sorted(rates[10:], reverse=True) == rates[10:]


def test_warmup_stable_decay_stays_at_the_peak_until_the_last_steps():
    rates = [learning_rate(step, 100, 2.0, 5, 20, 0.0, "warmup-stable-decay") for step in range(100)]
    assert set(rates[4:80]) == {2.0}
    assert rates[80] == pytest.approx(1.9)
    assert rates[89] == pytest.approx(1.0)
    assert rates[99] == 0.0


@pytest.mark.parametrize("schedule", ["cosine", "warmup-stable-decay"])
def test_the_last_step_has_the_floor_exactly_whatever_the_shape(schedule):
    draw = random.Random(0)
    for _ in range(3000):
        steps = draw.choice([1, 2, 3, draw.randint(1, 50), draw.randint(1, 100_000)])
        decay = draw.choice([0, 1, steps, draw.randint(1, steps)])
        warmup = draw.choice([0, steps - max(1, decay), draw.randint(0, steps - max(1, decay))])
        peak, share = 10 ** draw.uniform(-6, 1), draw.choice([0.0, 0.1, 1.0, draw.random()])
        shape = (steps, peak, warmup, decay, share * peak, schedule)
        rates = [learning_rate(step, *shape) for step in sorted({0, max(0, steps - 2), steps - 1, steps + 7})]
        assert rates[-1] == rates[-2] == share * peak, shape
        assert max(rates) <= peak, shape
        if warmup:
            assert learning_rate(warmup - 1, *shape) == peak, shape
        if schedule == "warmup-stable-decay" and warmup < steps - max(1, decay):
            assert learning_rate(steps - max(1, decay) - 1, *shape) == peak, shape
        if schedule == "cosine" and warmup < steps - 1:
            assert learning_rate(warmup, *shape) == peak, shape


@pytest.mark.parametrize("shape", [(3, 48, 96), (3, 96, 32), (1, 1, 7)])
@pytest.mark.parametrize(("precision", "slack"), [(torch.float32, 0.0), (torch.bfloat16, 0.06)])
def test_orthogonalised_matrices_keep_their_singular_vectors_with_values_near_1(shape, precision, slack):
    matrices = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    left, _, right = torch.linalg.svd(matrices, full_matrices=False)
    found = left.mT @ orthogonalize(matrices.to(precision)).float() @ right.mT
    values = found.diagonal(dim1=1, dim2=2)
    assert 0.85 - slack < values.min()
    assert values.max() < 1.15 + slack
    torch.testing.assert_close(found, torch.diag_embed(values), rtol=0, atol=1e-4 + slack)


def test_a_matrix_without_a_gradient_stays_where_it_is():
    assert torch.equal(orthogonalize(torch.zeros(2, 3, 4)), torch.zeros(2, 3, 4))


def test_muon_steps_by_the_orthogonal_factor_of_nesterov_momentum_and_adamw_takes_the_rest(config, model):
    """Against the definition, by singular value decomposition, and against AdamW."""
    other = Transformer(config)
    other.load_state_dict(model.state_dict())
    optimizers = [muon(model, weight_decay=0.1, momentum=0.9), adamw(other, weight_decay=0.1)]
    matrix, average = model.get_parameter("blocks.1.feed_forward.up.weight"), torch.zeros(40, 32)
    generator = torch.Generator().manual_seed(0)
    for _ in range(3):
        for one, same in zip(model.parameters(), other.parameters(), strict=True):
            one.grad = torch.randn(one.shape, generator=generator)
            same.grad = one.grad.clone()
        before, gradient = matrix.detach().clone(), matrix.grad.clone()
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = 0.01
            optimizer.step()
        average = 0.9 * average + 0.1 * gradient
        left, _, right = torch.linalg.svd(0.1 * gradient + 0.9 * average, full_matrices=False)
        expected = before * (1 - 0.01 * 0.1) - 0.01 * 0.2 * 40**0.5 * left @ right
        assert (matrix - expected).norm() < 0.15 * (matrix - before).norm()
    for name in ("embedding.weight", "norm.weight", "blocks.0.attention_norm.weight"):
        assert torch.equal(model.get_parameter(name), other.get_parameter(name))


def test_muon_learns(model, make_batch):
    state, batch = TrainState(model, muon(model)), make_batch(rows=2)
    losses = [train_step(state, [batch], learning_rate=1e-2, clip=1.0).loss for _ in range(30)]
    assert losses[-1] < 0.1 * losses[0]
