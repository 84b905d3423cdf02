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


def causal_attention(q_BTHE: Tensor, k_BSKE: Tensor, v_BSKE: Tensor) -> Tensor:
    """Each query attends to the keys up to its own position; returns BTHE.

    B rows, T queries, S keys, H query heads, K key-value heads (K divides H), E head width. The T queries
    stand at the end of the S positions: either there are as many (a whole row), or there is one, the next
    token of a row whose earlier keys were kept.
    """
    T, S = q_BTHE.shape[1], k_BSKE.shape[1]
    assert T in (1, S), f"{T} queries for {S} keys: the causal mask would be cut at the wrong corner"
    if flash_attention is not None and q_BTHE.is_cuda and q_BTHE.dtype in (torch.bfloat16, torch.float16):
        output = flash_attention(q_BTHE, k_BSKE, v_BSKE, causal=True)
        return output[0] if isinstance(output, tuple) else output  # early releases of 3 add the log-sums
    output_BHTE = F.scaled_dot_product_attention(
        q_BTHE.transpose(1, 2),
        k_BSKE.transpose(1, 2),
        v_BSKE.transpose(1, 2),
        is_causal=T == S,
        enable_gqa=q_BTHE.shape[2] != k_BSKE.shape[2],
    )
    return output_BHTE.transpose(1, 2)
