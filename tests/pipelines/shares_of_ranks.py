"""What the ranks of a training read together."""

from __future__ import annotations

import numpy as np

from ingot.pipelines.training.dataset import Share


def samples_of(shares: list[Share]) -> list[int]:
    """The samples of all ranks' shares of a step in the order of the global batch, of which no position may
    be missing or there twice."""
    positions = np.concatenate([share.positions for share in shares])
    assert sorted(positions.tolist()) == list(range(len(positions)))
    samples: list[int] = np.concatenate([share.samples for share in shares])[positions.argsort()].tolist()
    return samples
