"""The seam where attention's kernel is chosen: each way gives the same."""

import pytest
import torch
from torch import Tensor

from ingot.model import cpu_attention
from ingot.model.attention import causal_attention


def both_passes(inputs: list[Tensor]) -> list[Tensor]:
    """The output and the gradients of what went in."""
    leaves = [tensor.clone().requires_grad_() for tensor in inputs]
    output = causal_attention(*leaves)
    output.backward(torch.ones_like(output).cumsum(1))
    return [output.detach(), *(leaf.grad for leaf in leaves)]


@pytest.mark.parametrize("length", [64, 101])
@pytest.mark.parametrize("heads", [(4, 2), (3, 3)])
def test_blocks_of_queries_give_what_pytorchs_kernel_gives(length, heads, monkeypatch):
    generator = torch.Generator().manual_seed(0)
    queries, keys = heads
    inputs = [torch.randn(2, length, count, 8, generator=generator) for count in (queries, keys, keys)]
    in_blocks = both_passes(inputs)
    monkeypatch.setattr(cpu_attention, "SCORES_KEPT", 0)
    plain = both_passes(inputs)
    torch.testing.assert_close(in_blocks, plain, rtol=1e-4, atol=1e-4)
    assert not all(map(torch.equal, in_blocks, plain))  # it did go another way
