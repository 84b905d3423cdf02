"""What every process of the training comparison does, in whichever environment: one batch a step from the
same rows, the same AdamW, and an answer a word. It needs PyTorch, safetensors and nothing of Ingot.

    SCRIPT FOLDER STEPS THREADS [WORD …]

FOLDER has `model/`, a Hugging Face folder with the weights to begin with, and `rows.safetensors`: "tokens"
and "targets" of shape (S, B, T), and "documents" where rows are packed. STEPS are taken a turn, by so many
THREADS."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

LEARNING_RATE, BETAS, EPSILON, CLIP = 1e-3, (0.9, 0.95), 1e-8, 1.0
"""No weight decay: the loops differ in which parameters they would let decay."""

Step = Callable[[dict[str, Tensor]], float]


def adamw(model: torch.nn.Module) -> torch.optim.AdamW:
    parameters = list(model.parameters())
    return torch.optim.AdamW(
        parameters, lr=LEARNING_RATE, betas=BETAS, eps=EPSILON, weight_decay=0.0, fused=True
    )


def serve(begin: Callable[[Path, list[str]], Step]) -> None:
    """Answers each line of the input with the losses, the seconds and this process's CPU seconds of the next
    STEPS steps. `begin` gets the model's folder and the other words, and gives the step."""
    folder, steps = Path(sys.argv[1]), int(sys.argv[2])
    torch.set_num_threads(int(sys.argv[3]))
    rows = load_file(folder / "rows.safetensors")
    batches = [
        {name: column[number] for name, column in rows.items()} for number in range(len(rows["tokens"]))
    ]
    step = begin(folder / "model", sys.argv[4:])
    taken = 0
    for _ in sys.stdin:
        losses, seconds, cpu_seconds = [], [], []
        for _ in range(steps):
            began, began_cpu = time.perf_counter(), time.process_time()
            losses.append(step(batches[taken % len(batches)]))
            seconds.append(time.perf_counter() - began)
            cpu_seconds.append(time.process_time() - began_cpu)
            taken += 1
        print(json.dumps({"losses": losses, "seconds": seconds, "cpu_seconds": cpu_seconds}), flush=True)
