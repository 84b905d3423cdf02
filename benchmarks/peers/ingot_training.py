"""Ingot's bare step, `ingot.model.train_step`, without a loop, a loader or Ray around it.

ingot_training.py FOLDER STEPS THREADS eager|compiled"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
from torch import Tensor
from training import BETAS, CLIP, EPSILON, LEARNING_RATE, Step, serve  # type: ignore[import-not-found]

from ingot.model import Batch, TrainState, Transformer, adamw, parallelize, train_step
from ingot.model.huggingface import import_folder


def begin(folder: Path, words: list[str]) -> Step:
    config, weights = import_folder(folder)
    with torch.device("meta"):
        model = Transformer(config)
    parallelize(model, compile=words == ["compiled"])
    model.to_empty(device="cpu")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(weights[name])
    state = TrainState(model, adamw(model, weight_decay=0.0, betas=BETAS, epsilon=EPSILON))

    def step(rows: dict[str, Tensor]) -> float:
        batch = Batch(rows["tokens"], rows["targets"], documents_BT=rows.get("documents"))
        return train_step(state, [batch], learning_rate=LEARNING_RATE, clip=CLIP).loss

    return step


if __name__ == "__main__":
    serve(begin)
