"""litgpt's pretraining step, in its own environment: what one turn of its `fit` does between reading rows
and logging, on a compiled model and Lightning's Fabric, as its `pretrain.py` has it; its AdamW is fused too,
which litgpt itself asks for on a GPU only.

    litgpt_training.py FOLDER STEPS THREADS"""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path

import lightning  # type: ignore[import-not-found]
import torch
from litgpt import GPT, Config  # type: ignore[import-not-found]
from litgpt.scripts.convert_hf_checkpoint import copy_weights_hf_llama  # type: ignore[import-not-found]
from litgpt.utils import chunked_cross_entropy  # type: ignore[import-not-found]
from safetensors.torch import load_file
from torch import Tensor
from training import CLIP, Step, adamw, serve  # type: ignore[import-not-found]


def configuration(folder: Path) -> Config:
    body = json.loads((folder / "config.json").read_text())
    return Config(
        name="bench",
        block_size=body["max_position_embeddings"],
        vocab_size=body["vocab_size"],
        padded_vocab_size=body["vocab_size"],
        n_layer=body["num_hidden_layers"],
        n_head=body["num_attention_heads"],
        n_query_groups=body["num_key_value_heads"],
        n_embd=body["hidden_size"],
        intermediate_size=body["intermediate_size"],
        rotary_percentage=1.0,
        rope_base=round(body["rope_parameters"]["rope_theta"]),
        parallel_residual=False,
        bias=False,
        norm_class_name="RMSNorm",
        norm_eps=body["rms_norm_eps"],
        mlp_class_name="LLaMAMLP",
    )


def begin(folder: Path, words: list[str]) -> Step:
    fabric = lightning.Fabric(devices=1, accelerator="cpu", precision="32-true")
    config = configuration(folder)
    weights: dict[str, Tensor] = {}
    parts: dict[int, defaultdict[str, dict[str, Tensor]]] = {}
    copy_weights_hf_llama(config, parts, weights, load_file(folder / "model.safetensors"))
    whole = GPT(config)
    whole.load_state_dict(weights)
    whole.transformer.wte.weight = whole.lm_head.weight
    model = fabric.setup(torch.compile(whole))
    optimizer = fabric.setup_optimizers(adamw(model))

    def step(rows: dict[str, Tensor]) -> float:
        loss = chunked_cross_entropy(model(rows["tokens"]), rows["targets"])
        fabric.backward(loss)
        fabric.clip_gradients(model, optimizer, max_norm=CLIP)
        optimizer.step()
        optimizer.zero_grad()
        return float(loss.detach())

    return step


if __name__ == "__main__":
    serve(begin)
