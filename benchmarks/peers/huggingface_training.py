"""A plain loop over Hugging Face's `LlamaForCausalLM`, with its scaled-dot-product attention and fused AdamW.

huggingface_training.py FOLDER STEPS THREADS eager|compiled"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor
from training import CLIP, Step, adamw, serve  # type: ignore[import-not-found]
from transformers import LlamaForCausalLM


def begin(folder: Path, words: list[str]) -> Step:
    model = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="sdpa").train()
    optimizer = adamw(model)
    forward = torch.compile(model) if words == ["compiled"] else model

    def step(rows: dict[str, Tensor]) -> float:
        targets = rows["targets"]
        loss = forward(input_ids=rows["tokens"], labels=targets, shift_labels=targets, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return float(loss.detach())

    return step


if __name__ == "__main__":
    serve(begin)
