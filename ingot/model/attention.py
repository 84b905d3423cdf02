"""The one place where attention is computed, so the one place where its kernel is chosen.

FlashAttention-3 or -2 where it is installed and the tensors are half precision on a CUDA device; else
PyTorch's own fused kernels, which need nothing installed and on Hopper are cuDNN's.
"""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor


def installed_flash_attention() -> Callable[..., Tensor | tuple[Tensor, ...]] | None:
    for package in ("flash_attn_interface", "flash_attn"):  # version 3 (Hopper), version 2
        with contextlib.suppress(ImportError):
            return importlib.import_module(package).flash_attn_func
    return None


flash_attention = installed_flash_attention()


def visible(documents_BT: Tensor) -> Tensor:
    """Whether the query at a position may attend to the key at another, (B, 1, T queries, T keys): when it
    comes no later and belongs to the same document."""
    same_BTT = documents_BT[:, :, None] == documents_BT[:, None, :]
    return same_BTT.tril()[:, None]


def causal_attention(
    q_BTHE: Tensor, k_BSKE: Tensor, v_BSKE: Tensor, visible_B1TT: Tensor | None = None
) -> Tensor:
    """Each query attends to the keys up to its own position, of its own document; returns BTHE.

    B rows, T queries, S keys, H query heads, K key-value heads (K divides H), E head width. The T queries
    stand at the end of the S positions: either there are as many (a whole row), or there is one, the next
    token of a row whose earlier keys were kept. `visible_B1TT` is `visible` of the documents that the rows
    are packed from; without it a row is one document.
    """
    T, S = q_BTHE.shape[1], k_BSKE.shape[1]
    assert T in (1, S), f"{T} queries for {S} keys: the causal mask would be cut at the wrong corner"
    half_on_gpu = q_BTHE.is_cuda and q_BTHE.dtype in (torch.bfloat16, torch.float16)
    if flash_attention is not None and half_on_gpu and visible_B1TT is None:
        output = flash_attention(q_BTHE, k_BSKE, v_BSKE, causal=True)
        return output[0] if isinstance(output, tuple) else output  # early releases of 3 add the log-sums
    output_BHTE = F.scaled_dot_product_attention(
        q_BTHE.transpose(1, 2),
        k_BSKE.transpose(1, 2),
        v_BSKE.transpose(1, 2),
        attn_mask=visible_B1TT,
        is_causal=T == S and visible_B1TT is None,
        enable_gqa=q_BTHE.shape[2] != k_BSKE.shape[2],
    )
    return output_BHTE.transpose(1, 2)
