import pytest
import torch

from ingot.model import TrainState, adamw, generate, train_step


@pytest.fixture
def trained(model, make_batch):
    """Sure enough of itself for the likeliest token to be clear."""
    state, batch = TrainState(model, adamw(model)), make_batch(rows=4)
    for _ in range(20):
        train_step(state, [batch], learning_rate=1e-2, clip=1.0)
    return model


@torch.no_grad()
def uncached(model, prompt: list[int], new_tokens: int) -> list[int]:
    row = list(prompt)
    for _ in range(new_tokens):
        row.append(int(model(torch.tensor([row]))[0, -1].argmax()))
    return row[len(prompt) :]


def test_cached_generation_of_ragged_prompts_is_that_of_each_prompt_run_anew(trained, make_batch):
    rows = make_batch(rows=4).tokens_BT.tolist()
    prompts = [row[:length] for row, length in zip(rows, (5, 1, 9, 3), strict=True)]
    assert generate(trained, prompts, new_tokens=8) == [uncached(trained, prompt, 8) for prompt in prompts]


def test_generation_ends_before_a_stop_token_and_at_the_end_of_the_context(trained, config):
    [free] = generate(trained, [[1, 2, 3]], new_tokens=6)
    [stopped, other] = generate(trained, [[1, 2, 3], [4, 5]], new_tokens=6, stop={free[3]})
    assert stopped == free[: free.index(free[3])]
    assert free[3] not in other
    [full] = generate(trained, [[7] * (config.context - 2)], new_tokens=10)
    assert len(full) == 2


def test_sampling_follows_the_seed_and_the_probabilities(trained):
    prompt = [[1, 2]]
    drawn = [generate(trained, prompt, new_tokens=6, temperature=1.5, seed=seed) for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]
    probabilities = trained(torch.tensor(prompt))[0, -1].softmax(-1)
    first = [row[0] for row in generate(trained, prompt * 4000, new_tokens=1, temperature=1.0)]
    counts = torch.bincount(torch.tensor(first), minlength=97) / 4000
    assert (counts - probabilities).abs().max() < 0.04
    # So cold that only the likeliest is ever drawn.
    cold = generate(trained, prompt, new_tokens=4, temperature=1e-4)
    assert cold == generate(trained, prompt, new_tokens=4)
