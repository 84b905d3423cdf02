import pytest

from ingot.model import adamw, learning_rate


def test_matrices_decay_and_norms_and_embeddings_do_not(model):
    optimizer = adamw(model, weight_decay=0.2)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = optimizer.param_groups
    decays = {names[id(p)]: group["weight_decay"] for group in groups for p in group["params"]}
    assert decays.keys() == set(names.values())
    for name, decay in decays.items():
        assert decay == (0.0 if "norm" in name or "embedding" in name else 0.2), name


def test_cosine_rises_in_a_line_and_falls_to_the_floor():
    rates = [learning_rate(step, 100, 1.0, 10, 0, 0.1, "cosine") for step in range(101)]
    assert rates[:10] == pytest.approx([(step + 1) / 10 for step in range(10)])
    assert rates[10] == 1.0
    assert rates[55] == pytest.approx(0.55)
    assert rates[100] == pytest.approx(0.1)
    assert sorted(rates[10:], reverse=True) == rates[10:]


def test_warmup_stable_decay_stays_at_the_peak_until_the_last_steps():
    rates = [learning_rate(step, 100, 2.0, 5, 20, 0.0, "warmup-stable-decay") for step in range(100)]
    assert set(rates[4:81]) == {2.0}
    assert rates[90] == pytest.approx(1.0)
    assert rates[99] == pytest.approx(0.1)


@pytest.mark.parametrize("schedule", ["cosine", "warmup-stable-decay"])
def test_a_schedule_without_warmup_or_past_its_end_is_still_defined(schedule):
    assert learning_rate(0, 10, 1.0, 0, 5, 0.2, schedule) == 1.0
    assert learning_rate(50, 10, 1.0, 0, 5, 0.2, schedule) == pytest.approx(0.2)
