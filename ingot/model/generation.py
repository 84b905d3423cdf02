"""Texts from a model, and probabilities of texts: what evaluation needs. Serving is vLLM's work."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch
from torch import Tensor

from ingot.model.losses import row_logprobs
from ingot.model.transformer import KeyValueCache, Transformer


@torch.no_grad()
@torch.compiler.set_stance("force_eager")  # every token is a new shape: compiling would take all the time
def generate(
    model: Transformer,
    prompts: Sequence[Sequence[int]],
    *,
    new_tokens: int,
    temperature: float = 0.0,
    seed: int = 0,
    stop: Collection[int] = (),
) -> list[list[int]]:
    """Continues each prompt by at most `new_tokens` tokens; returns the continuations.

    At temperature 0 the likeliest token is taken, else one is drawn from softmax(logits / temperature)
    with a generator seeded by `seed`. A continuation ends before a `stop` token, or where the model's
    context is full.

    Prompts may have different lengths: all rows advance together, and where a row's prompt goes on its
    next token is the prompt's. So no row is ever padded and nothing is masked.
    """
    assert all(prompts), "a prompt has at least one token"
    device = model.embedding.weight.device
    ends = [min(len(prompt) + new_tokens, model.config.context) for prompt in prompts]
    shortest, longest = min(map(len, prompts)), max(ends)
    like = torch.empty(0, dtype=model.compute_dtype, device=device)
    caches = [KeyValueCache(len(prompts), longest, model.config, like) for _ in model.blocks]
    generator = torch.Generator(device).manual_seed(seed)
    rows = [list(prompt) for prompt in prompts]
    running = set(range(len(rows)))

    tokens_BT = torch.tensor([row[:shortest] for row in rows], device=device)
    for position in range(shortest, longest):
        logits_BV = model(tokens_BT, caches=caches)[:, -1]
        next_B = choose(logits_BV, temperature, generator).tolist()
        for index, row in enumerate(rows):
            if position < len(prompts[index]):
                next_B[index] = prompts[index][position]
            elif index in running and position < ends[index] and next_B[index] not in stop:
                row.append(next_B[index])
            else:
                running.discard(index)
        if not running:
            break
        tokens_BT = torch.tensor(next_B, device=device)[:, None]
    return [row[len(prompt) :] for row, prompt in zip(rows, prompts, strict=True)]


def choose(logits_BV: Tensor, temperature: float, generator: torch.Generator) -> Tensor:
    """One token a row."""
    if temperature == 0:
        return logits_BV.argmax(dim=-1)
    probabilities_BV = (logits_BV / temperature).softmax(dim=-1)
    return torch.multinomial(probabilities_BV, 1, generator=generator).squeeze(1)


@torch.no_grad()
def logprobs(model: Transformer, tokens_BT: Tensor, targets_BT: Tensor) -> tuple[Tensor, Tensor]:
    """Each row's summed log-probability of its targets (nats) and the number of those that count."""
    return row_logprobs(model(tokens_BT, targets_BT), targets_BT)
