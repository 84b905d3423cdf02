"""Attention on a CPU over rows that are packed from documents: PyTorch's fused kernel, a document at a time.

Measured on one core (its own time, both passes, fp32) against that kernel with a mask over whole rows: 26 ms
against 22 at 8 rows of 256 (37 documents, 4 heads of 32), 89 against 292 at 2 rows of 1024 (11 documents,
8 heads of 64), 477 against 2623 at a row of 4096 (5 documents). A mask saves no work, not even the half
behind each query. FlexAttention has no backward pass on a CPU.

An operator of its own, as the loop's bounds are data: compiled, the loop would be cut out of the graph.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

SCORES_KEPT = 2**22
"""How many scores of a layer, rows x heads x positions squared, may be kept for its backward pass: 10 MiB of
the part that is not masked."""

BLOCKS = 4  # of queries: of what is masked, a quarter is computed all the same

forward_kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
backward_kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


def fits_in_blocks(q_BTHE: Tensor, k_BSKE: Tensor) -> bool:
    """Whether `attention_in_blocks` is for these: whole rows in fp32, neither short nor too long."""
    (B, T, H, _), S = q_BTHE.shape, k_BSKE.shape[1]
    on_cpu_in_fp32 = q_BTHE.device.type == "cpu" and q_BTHE.dtype == torch.float32
    return on_cpu_in_fp32 and T == S and rows_fit_in_blocks(B, H, T)


def rows_fit_in_blocks(rows: int, heads: int, length: int) -> bool:
    return length >= 64 and rows * heads * length**2 <= SCORES_KEPT


def attention_in_blocks(q_BTHE: Tensor, k_BTKE: Tensor, v_BTKE: Tensor) -> Tensor:
    """Causal attention as plain matrix products: a block of queries with all keys up to its end.

    PyTorch's kernel reaches a third of the speed of a plain product in training. Measured on one core, 4 rows
    of 512 tokens, 4 heads of width 64 on 2 of keys, both passes, not compiled: 84 ms there, 62 ms here.
    """
    (B, T, H, E), K = q_BTHE.shape, k_BTKE.shape[2]
    G = H // K  # query heads that share a key-value head: their queries stand below each other
    k_NET = k_BTKE.permute(0, 2, 3, 1).flatten(0, 1)  # N = B K
    v_NTE = v_BTKE.transpose(1, 2).flatten(0, 1)
    q_BTKGE = (q_BTHE * E**-0.5).unflatten(2, (K, G))
    outputs = []
    for number in range(BLOCKS):
        start, end = T * number // BLOCKS, T * (number + 1) // BLOCKS
        t = end - start
        later = torch.ones(t, end, dtype=torch.bool, device=q_BTHE.device).triu(start + 1)
        bias = torch.zeros(later.shape, device=q_BTHE.device).masked_fill(later, -math.inf).repeat(G, 1)
        q_NtE = q_BTKGE[:, start:end].permute(0, 2, 3, 1, 4).reshape(B * K, G * t, E)
        weights = torch.baddbmm(bias, q_NtE, k_NET[:, :, :end]).softmax(-1)
        o_BKGtE = (weights @ v_NTE[:, :end]).view(B, K, G, t, E)
        outputs.append(o_BKGtE.permute(0, 3, 1, 2, 4).reshape(B, t, H, E))
    return torch.cat(outputs, dim=1)


@torch.library.custom_op("ingot::document_attention", mutates_args=())
def document_attention(
    q_BTHE: Tensor, k_BTKE: Tensor, v_BTKE: Tensor, documents_BT: Tensor
) -> tuple[Tensor, Tensor]:
    """Each query attends to the keys of its own document up to its own position: the output, BTHE, and the
    logarithm of each query's summed exponentials, BTH, which the backward pass needs."""
    output_BTHE = torch.empty_like(q_BTHE, memory_format=torch.contiguous_format)
    logsums_BTH = new_logsums(q_BTHE)
    heads = k_BTKE.shape[2]
    for place in places(documents_BT):
        k, v = (spread(x[place], q_BTHE) for x in (k_BTKE, v_BTKE))
        output, logsums = forward_kernel(grouped(q_BTHE[place], heads), k, v, 0.0, True)
        grouped(output_BTHE[place], heads).copy_(output)
        logsums_BTH[place].unflatten(1, (heads, -1)).permute(1, 2, 0).copy_(logsums)
    return output_BTHE, logsums_BTH


@torch.library.custom_op("ingot::document_attention_backward", mutates_args=())
def document_attention_backward(
    upstream_BTHE: Tensor,
    q_BTHE: Tensor,
    k_BTKE: Tensor,
    v_BTKE: Tensor,
    output_BTHE: Tensor,
    logsums_BTH: Tensor,
    documents_BT: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of queries, keys and values."""
    gradients = tuple(
        torch.empty_like(x, memory_format=torch.contiguous_format) for x in (q_BTHE, k_BTKE, v_BTKE)
    )
    heads = k_BTKE.shape[2]
    for place in places(documents_BT):
        upstream, q, output = (grouped(x[place], heads) for x in (upstream_BTHE, q_BTHE, output_BTHE))
        k, v = (spread(x[place], q_BTHE) for x in (k_BTKE, v_BTKE))
        logsums = logsums_BTH[place].unflatten(1, (heads, -1)).permute(1, 2, 0)
        dq, dk, dv = backward_kernel(upstream, q, k, v, output, logsums, 0.0, True)
        grouped(gradients[0][place], heads).copy_(dq)
        for whole, part in zip(gradients[1:], (dk, dv), strict=True):
            whole[place].transpose(0, 1).copy_(part.sum(dim=1))
    return gradients


def places(documents_BT: Tensor) -> Iterator[tuple[int, slice]]:
    """Each document's row and positions."""
    for row, lengths in enumerate(torch.unique_consecutive(r, return_counts=True)[1] for r in documents_BT):
        start = 0
        for length in lengths.tolist():
            yield row, slice(start, start + length)
            start += length


def grouped(x_THE: Tensor, heads: int) -> Tensor:
    """A view of the heads that share a key-value head side by side: (K, H / K, T, E)."""
    return x_THE.unflatten(1, (heads, -1)).permute(1, 2, 0, 3)


def spread(x_TKE: Tensor, like_BTHE: Tensor) -> Tensor:
    """A view of a key-value head for each of the query heads that share it: (K, H / K, T, E)."""
    T, K, E = x_TKE.shape
    return x_TKE.transpose(0, 1)[:, None].expand(K, like_BTHE.shape[2] // K, T, E)


def new_logsums(q_BTHE: Tensor) -> Tensor:
    half = q_BTHE.dtype in (torch.bfloat16, torch.float16)
    return q_BTHE.new_empty(q_BTHE.shape[:3], dtype=torch.float32 if half else q_BTHE.dtype)


@document_attention.register_fake
def _(q_BTHE: Tensor, k_BTKE: Tensor, v_BTKE: Tensor, documents_BT: Tensor) -> tuple[Tensor, Tensor]:
    return torch.empty_like(q_BTHE, memory_format=torch.contiguous_format), new_logsums(q_BTHE)


@document_attention_backward.register_fake
def _(upstream_BTHE: Tensor, *inputs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    q, k, v = (torch.empty_like(x, memory_format=torch.contiguous_format) for x in inputs[:3])
    return q, k, v


def keep(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, Tensor]) -> None:
    *qkv, documents_BT = inputs
    ctx.save_for_backward(*qkv, *output, documents_BT)


def gradients(ctx: Any, upstream_BTHE: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    return (*document_attention_backward(upstream_BTHE, *ctx.saved_tensors), None)


document_attention.register_autograd(gradients, setup_context=keep)
