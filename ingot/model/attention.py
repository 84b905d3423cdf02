"""The one place where attention is computed, so the one place where its kernel is chosen.

FlashAttention-3 or -2 where it is installed and the tensors are half precision on a CUDA device; else
PyTorch's own fused kernels, which need nothing installed and on Hopper are cuDNN's. Rows that are packed from
documents go through the variable-length forms of the same kernels, on a CPU document by document
(cpu_attention.py): what lies between two documents is not computed, rather than computed and masked.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import inspect
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ingot.model.cpu_attention import attention_in_blocks, document_attention, fits_in_blocks

Kernel = Callable[..., Tensor | tuple[Tensor, ...]]


def installed_flash_attention() -> tuple[Kernel, Kernel] | None:
    """The kernel for rows, and the one for the documents of packed rows."""
    for package in ("flash_attn_interface", "flash_attn"):  # version 3 (Hopper), version 2
        with contextlib.suppress(ImportError):
            module = importlib.import_module(package)
            return (
                functools.partial(module.flash_attn_func, causal=True),
                functools.partial(module.flash_attn_varlen_func, causal=True),
            )
    return None


def torch_varlen_attention() -> Kernel:
    """PyTorch's copy of FlashAttention-2 for packed rows."""
    from torch.nn.attention.varlen import varlen_attn

    # Later than 2.11, fewer key-value heads than query heads must be asked for.
    asks = "enable_gqa" in inspect.signature(varlen_attn).parameters
    return functools.partial(varlen_attn, window_size=(-1, 0), **({"enable_gqa": True} if asks else {}))


flash_attention = installed_flash_attention()
varlen_attention = flash_attention[1] if flash_attention else torch_varlen_attention()


class Packing(NamedTuple):
    """Which documents rows are packed from, in the terms of every kernel. Made once a batch."""

    documents_BT: Tensor
    """The number of each position's document (see `step.Batch`)."""
    starts: Tensor | None
    """On a CUDA device: int32, where each document begins among all B * T positions, and at last B * T."""

    @staticmethod
    def of(documents_BT: Tensor) -> Packing:
        if not documents_BT.is_cuda:
            return Packing(documents_BT, None)
        starts = document_starts(documents_BT)
        # Their number differs from batch to batch, and a block is to be compiled for all at once.
        torch._dynamo.maybe_mark_dynamic(starts, 0)
        return Packing(documents_BT, starts)


def document_begins(documents_BT: Tensor) -> Tensor:
    """Whether a position is the first of its document; BT. A row's first one is."""
    return F.pad(documents_BT.diff(dim=1) != 0, (1, 0), value=True)


def document_starts(documents_BT: Tensor) -> Tensor:
    """Where each document begins among all positions, row after row, and at last their number; int32."""
    # How many there are decides a shape, so this waits for the device: once a batch, before its first block.
    starts = document_begins(documents_BT).flatten().nonzero().flatten()
    return F.pad(starts, (0, 1), value=documents_BT.numel()).int()


def document_positions(documents_BT: Tensor) -> Tensor:
    """Each position counted from the beginning of its document; BT."""
    positions_T = torch.arange(documents_BT.shape[1], device=documents_BT.device)
    return positions_T - (document_begins(documents_BT) * positions_T).cummax(dim=1).values


def causal_attention(
    q_BTHE: Tensor, k_BSKE: Tensor, v_BSKE: Tensor, packing: Packing | None = None
) -> Tensor:
    """Each query attends to the keys up to its own position, of its own document; returns BTHE.

    B rows, T queries, S keys, H query heads, K key-value heads (K divides H), E head width. The T queries
    stand at the end of the S positions: either there are as many (a whole row), or there is one, the next
    token of a row whose earlier keys were kept. Without `packing` each row is one document; with it rows are
    whole.
    """
    T, S = q_BTHE.shape[1], k_BSKE.shape[1]
    assert T in (1, S), f"{T} queries for {S} keys: the causal mask would be cut at the wrong corner"
    for_flash = q_BTHE.is_cuda and q_BTHE.dtype in (torch.bfloat16, torch.float16)
    visible_B1TT = None
    if packing is not None:
        if packing.starts is not None and for_flash:
            flat = (x.flatten(0, 1) for x in (q_BTHE, k_BSKE, v_BSKE))
            # The longest document may be as long as a row: to know better would be to wait for the device.
            return only_output(varlen_attention(*flat, packing.starts, packing.starts, T, T)).view_as(q_BTHE)
        if q_BTHE.device.type == "cpu":
            return document_attention(q_BTHE, k_BSKE, v_BSKE, packing.documents_BT)[0]
        same_BTT = packing.documents_BT[:, :, None] == packing.documents_BT[:, None, :]
        visible_B1TT = same_BTT.tril()[:, None]
    elif flash_attention is not None and for_flash:
        return only_output(flash_attention[0](q_BTHE, k_BSKE, v_BSKE))
    elif fits_in_blocks(q_BTHE, k_BSKE):
        return attention_in_blocks(q_BTHE, k_BSKE, v_BSKE)
    output_BHTE = F.scaled_dot_product_attention(
        q_BTHE.transpose(1, 2),
        k_BSKE.transpose(1, 2),
        v_BSKE.transpose(1, 2),
        attn_mask=visible_B1TT,
        is_causal=T == S and visible_B1TT is None,
        enable_gqa=q_BTHE.shape[2] != k_BSKE.shape[2],
    )
    return output_BHTE.transpose(1, 2)


def only_output(result: Tensor | tuple[Tensor, ...]) -> Tensor:
    return result[0] if isinstance(result, tuple) else result  # early releases of version 3 add the log-sums
