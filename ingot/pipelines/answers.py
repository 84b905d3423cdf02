"""Prompts with answers as tensors: rows padded on the right, and targets on the answers alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch

Answer = tuple[Sequence[int], Sequence[int]]
"""The ids of a prompt, up to and with the sign that the assistant speaks, and of what it answers, its stop
token included."""


def padded(answers: Sequence[Answer], rows: int | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens and targets, both int64 of shape (rows, longest - 1). A position's target is the token after it
    where that is the answer's, so the first is the answer's first token at the prompt's last position and
    the last is the stop token; elsewhere it is `IGNORED`. `rows` fills up with rows that count nothing."""
    import torch

    from ingot.model import IGNORED

    longest = max([1, *(len(prompt) + len(answer) - 1 for prompt, answer in answers)])
    # What stands in the padding is never seen: attention looks back only.
    tokens_BT = torch.zeros((rows or len(answers), longest), dtype=torch.int64)
    targets_BT = torch.full_like(tokens_BT, IGNORED)
    for row, (prompt, answer) in enumerate(answers):
        last = len(prompt) + len(answer) - 1
        tokens_BT[row, : len(prompt)] = torch.as_tensor(prompt)
        tokens_BT[row, len(prompt) : last] = torch.as_tensor(answer[:-1])
        targets_BT[row, len(prompt) - 1 : last] = torch.as_tensor(answer)
    return tokens_BT, targets_BT


def dealt(lengths: np.ndarray, world: int) -> np.ndarray:
    """An order of a global batch in which the share of each of `world` ranks, a contiguous part, ascends in
    length and is much like the others': micro batches hold rows of about one length, so little is padding,
    and no rank waits for another."""
    by_length = np.argsort(lengths, kind="stable")
    return np.concatenate([by_length[rank::world] for rank in range(world)])
