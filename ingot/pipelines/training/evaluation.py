"""Measuring a model on held-out text: bits per byte, which no tokenizer flatters."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from ingot.pipelines.artifact import Artifact, load
from ingot.pipelines.store import Store
from ingot.pipelines.tokenizer import load_tokenizer
from ingot.pipelines.training.dataset import shares
from ingot.pipelines.training.tokens import Samples, next_token_batch

if TYPE_CHECKING:
    from ingot.model import Transformer
    from ingot.pipelines.training.group import Group


class Evaluation(Protocol):
    """Called on all workers together; gives the same metrics on each. The model may be sharded, so each must
    run it equally often."""

    def __call__(
        self, model: Transformer, store: Store, spec: Mapping[str, Any], group: Group
    ) -> dict[str, float]: ...


def held_out_samples(tokens: Artifact, context: int, at_most: int) -> np.ndarray:
    """The first rows of the held-out split, about `at_most` tokens of them, int64 of shape
    (rows, context + 1)."""
    samples = Samples(tokens, "held-out", context)
    return samples.read(np.arange(min(samples.count, -(-at_most // context))))


def bits_per_byte(
    model: Transformer, store: Store, spec: Mapping[str, Any], group: Group
) -> dict[str, float]:
    """The model's information about held-out text: the summed negative log-likelihood of all targets that
    stand for text, in bits, over the bytes they stand for. `spec`: tokens and tokenizer (keys of artifacts),
    context, evaluate_tokens."""
    import torch

    tokens, tokenizer = load(store, spec["tokens"]), load(store, spec["tokenizer"])
    assert tokens is not None, spec["tokens"]
    assert tokenizer is not None, spec["tokenizer"]
    rows = held_out_samples(tokens, spec["context"], spec["evaluate_tokens"])
    bytes_V = torch.from_numpy(load_tokenizer(tokenizer).token_bytes).to(group.device)
    nats = size = 0.0
    ranges, filled = shares(len(rows), group.rank, group.world, group.micro_batch)
    with torch.no_grad():
        for own in ranges:
            batch = group.here(next_token_batch(rows[own.start : own.stop], filled))
            bytes_BT = bytes_V[batch.targets_BT.clamp(min=0)] * (batch.targets_BT >= 0)
            nll_BT = model(batch.tokens_BT, batch.targets_BT)
            nats += float((nll_BT.double() * (bytes_BT > 0)).sum())
            size += int(bytes_BT.sum())
    nats, size = group.totals(nats, size)
    return {"bits_per_byte": nats / math.log(2) / size}


def unigram_bits_per_byte(rows: np.ndarray, token_bytes: np.ndarray) -> float:
    """What a model would reach that knows how frequent each token is among these very targets, and nothing
    else: the entropy of their frequencies, over the same bytes."""
    targets = rows[:, 1:].ravel()
    counts = np.bincount(targets, minlength=len(token_bytes)) * (token_bytes > 0)
    seen = counts[counts > 0]
    return float(-(seen * np.log2(seen / seen.sum())).sum() / (counts * token_bytes).sum())
