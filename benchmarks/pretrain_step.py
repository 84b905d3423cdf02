"""The training step beside those of peers: one model, one batch, one dtype, the same threads; part of
pretrain.py.

Every loop runs in a process of its own, begins with the same weights, sees the same rows, and takes some
steps a turn, so that they run in turns; the first turn's losses must agree before anything is timed."""

from __future__ import annotations

import statistics
import sys
import tempfile
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import torch
from peers.environment import Peer, Unavailable
from safetensors.torch import save_file

from ingot.model import ModelConfig, Transformer
from ingot.model.huggingface import export_folder

THREADS = 2
TOLERANCE = 2e-4  # of a loss after several steps: sums in another order, and steps that carry it on


@dataclass(frozen=True)
class Size:
    config: ModelConfig
    rows: int
    steps: int  # of a turn
    turns: int


FULL = Size(
    ModelConfig(vocabulary=8192, width=256, layers=6, heads=4, kv_heads=2, hidden=768, context=512), 4, 4, 6
)
QUICK = Size(
    ModelConfig(vocabulary=4096, width=128, layers=1, heads=4, kv_heads=2, hidden=384, context=256), 4, 4, 4
)

LOOPS = {  # the name in the last line → script, words
    "ingot": ("ingot_training", "compiled"),
    "ingot_eager": ("ingot_training", "eager"),
    "huggingface": ("huggingface_training", "eager"),
    "huggingface_compiled": ("huggingface_training", "compiled"),
    "litgpt": ("litgpt_training",),
}
OF_THEIR_OWN = {"litgpt"}  # environments


def measure_step(quick: bool) -> tuple[dict[str, float], dict[str, float]]:
    """Tokens a second of each loop, and ours over theirs."""
    size = QUICK if quick else FULL
    config = size.config
    print(
        f"\ntraining: {config.parameters():,} parameters, width {config.width}, {config.layers} layers, "
        f"vocabulary {config.vocabulary}; steps of {size.rows} x {config.context} tokens in fp32",
        flush=True,
    )
    with tempfile.TemporaryDirectory(prefix="ingot-bench-") as name, ExitStack() as stack:
        folder = Path(name)
        write_model(folder, config, seed=0)
        write_rows(folder, size)
        loops = begin_all(stack, folder, size)
        refuse_other_losses(loops)
        seconds: dict[str, list[float]] = {name: [] for name in loops}
        cpu: dict[str, list[float]] = {name: [] for name in loops}
        for _ in range(size.turns):
            for name, loop in loops.items():
                answer = loop.ask("time")
                seconds[name].append(statistics.median(answer["seconds"]))
                cpu[name].append(statistics.median(answer["cpu_seconds"]))
    return compared(size, seconds, cpu)


def write_model(folder: Path, config: ModelConfig, seed: int) -> None:
    """The weights that all loops begin with, as `FOLDER/model`."""
    model = Transformer(config)
    model.init_weights(seed)
    export_folder(config, model.state_dict(), folder / "model", bos=0, eos=0, pad=0)


def write_rows(folder: Path, size: Size) -> None:
    """Tokens whose next one is often the same, so that there is something to learn."""
    generator = torch.Generator().manual_seed(0)
    vocabulary, length = size.config.vocabulary, size.config.context + 1
    tokens = torch.randint(vocabulary, (size.steps, size.rows, length), generator=generator)
    follows = torch.rand(tokens.shape, generator=generator) < 0.5
    for place in range(1, length):
        after = (tokens[..., place - 1] * 31 + 7) % vocabulary
        tokens[..., place] = torch.where(follows[..., place], after, tokens[..., place])
    rows = {"tokens": tokens[..., :-1].contiguous(), "targets": tokens[..., 1:].contiguous()}
    save_file(rows, folder / "rows.safetensors")


def begin_all(stack: ExitStack, folder: Path, size: Size) -> dict[str, Peer]:
    loops = {}
    for name, (script, *words) in LOOPS.items():
        python = None if name in OF_THEIR_OWN else sys.executable
        try:
            loops[name] = stack.enter_context(
                Peer(name, script, folder, size.steps, THREADS, *words, python=python)
            )
        except Unavailable as reason:
            print(f"  {reason}", flush=True)
    return loops


def refuse_other_losses(loops: dict[str, Peer]) -> None:
    for loop in loops.values():  # all compile at once
        loop.tell("begin")
    losses = {}
    for name, loop in loops.items():
        answer = loop.hear()
        losses[name] = answer["losses"]
        print(f"  {name:21} first step after {answer['seconds'][0]:6.1f} s; losses {spoken(losses[name])}")
    for name, own in losses.items():
        for step, (loss, expected) in enumerate(zip(own, losses["ingot"], strict=True)):
            if abs(loss - expected) > TOLERANCE * expected:
                raise SystemExit(f"{name}: loss {loss} at step {step}, where Ingot's is {expected}")
    print(f"  the losses of the first {len(losses['ingot'])} steps agree", flush=True)


def compared(
    size: Size, seconds: dict[str, list[float]], cpu: dict[str, list[float]]
) -> tuple[dict[str, float], dict[str, float]]:
    tokens = size.rows * size.config.context
    figures: dict[str, float] = {}
    ratios: dict[str, float] = {}
    for name, own in seconds.items():
        figures[f"{name}_tokens_per_second"] = tokens / statistics.median(own)
        figures[f"{name}_cpu_seconds_per_step"] = statistics.median(cpu[name])
        print(
            f"  {name:21} {tokens / statistics.median(own):8,.0f} tokens/s   "
            f"{tokens / max(own):,.0f} … {tokens / min(own):,.0f};   "
            f"{statistics.median(cpu[name]):.2f} CPU seconds a step"
        )
        if name != "ingot":
            ratio = statistics.median(a / b for a, b in zip(own, seconds["ingot"], strict=True))
            of_cpu = statistics.median(a / b for a, b in zip(cpu[name], cpu["ingot"], strict=True))
            (figures if name == "ingot_eager" else ratios)[f"train_vs_{name}"] = ratio
            figures[f"train_cpu_vs_{name}"] = of_cpu
            print(f"    ours is {ratio:.2f} times as fast by time, {of_cpu:.2f} by CPU time", flush=True)
    return figures, ratios


def spoken(losses: list[float]) -> str:
    return " ".join(f"{loss:.5f}" for loss in losses)
