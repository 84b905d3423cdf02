"""A model small enough for any test, with no two sizes equal, and batches for it."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch

from ingot.model import IGNORED, Batch, ModelConfig, Transformer


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Products this small only wait for a second thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def config() -> ModelConfig:
    return ModelConfig(vocabulary=97, width=32, layers=2, heads=4, kv_heads=2, hidden=40, context=24)


@pytest.fixture
def model(config: ModelConfig) -> Transformer:
    model = Transformer(config)
    model.init_weights(seed=0)
    return model


@pytest.fixture
def make_batch(config: ModelConfig) -> Callable[..., Batch]:
    """Random rows; row `i` of a batch made with `ignored` counts none of its first `ignored[i]` targets."""

    def make(rows: int, length: int = 16, seed: int = 0, ignored: list[int] | None = None) -> Batch:
        generator = torch.Generator().manual_seed(seed)
        tokens = torch.randint(config.vocabulary, (rows, length + 1), generator=generator)
        targets = tokens[:, 1:].clone()
        for row, count in enumerate(ignored or []):
            targets[row, :count] = IGNORED
        return Batch(tokens[:, :-1], targets)

    return make
