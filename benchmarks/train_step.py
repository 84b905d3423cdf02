"""How fast one training step is: tokens and FLOPs a second, share of the device's peak, and memory.

    python benchmarks/train_step.py [--model tiny|base-1b] [--quick] [--batch ROWS] [--no-compile] …

Needs nothing but PyTorch, and one GPU or none. What is measured is `ingot.model.train_step`, the very
function that trains: forward, backward, clipping and AdamW, on random tokens that are on the device already.
The last line is one JSON object with all figures.
"""

from __future__ import annotations

import argparse
import dataclasses
import gc
import json
import os
import platform
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from ingot.model import PRESETS, Batch, ModelConfig, TrainState, Transformer, adamw, parallelize, train_step
from ingot.model.cost import Execution, step_memory
from ingot.model.device import peak_flops, peak_memory, synchronize

STATE_BYTES = 16
"""Memory of a parameter in training: its fp32 value, its gradient and AdamW's two moments."""


@dataclasses.dataclass(frozen=True)
class Settings:
    """How a model is run; what the command line leaves open depends on the device."""

    rows: int
    sequence: int
    microbatches: int
    warmup: int
    steps: int


@dataclasses.dataclass(frozen=True)
class Result:
    config: ModelConfig
    settings: Settings
    tokens_per_second: float
    """Of the median step."""
    first_step_seconds: float
    """With compilation, if there is any."""
    peak_bytes: int
    loss: float


def main() -> None:
    options = parse()
    device = torch.device(options.device)
    if options.threads:
        torch.set_num_threads(options.threads)
    peak, peak_source = peak_flops(device, options.precision)
    print(f"{machine(device)['device']}: {peak / 1e12:.4g} TFLOP/s at most, {peak_source}")
    figures: dict[str, float] = {"peak_flops_per_second": peak}
    for name in [options.model] if options.model else PRESETS:
        result = fitting(name, PRESETS[name], device, options)
        figures |= report(name, result, peak, device, options)
    print(
        json.dumps(
            {
                "benchmark": "train_step",
                "machine": {**machine(device), "mode": mode(options)},
                "versions": {"python": platform.python_version(), "torch": torch.__version__},
                "figures": figures,
                "ratios": {},
            }
        )
    )


def parse() -> argparse.Namespace:
    cuda = torch.cuda.is_available()
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", choices=PRESETS, help="only this one of the models")
    parser.add_argument("--quick", action="store_true", help="fewer and shorter steps")
    parser.add_argument("--batch", type=int, metavar="ROWS", help="rows of a microbatch")
    parser.add_argument("--sequence", type=int, metavar="TOKENS", help="tokens of a row")
    parser.add_argument("--microbatches", type=int, help="microbatches of a step")
    parser.add_argument("--steps", type=int, help="steps that are timed")
    parser.add_argument("--layers", type=int, help="run so many layers of the model only")
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, default=cuda)
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="bf16" if cuda else "fp32")
    parser.add_argument("--checkpointing", choices=("none", "selective", "full"), default="none")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda" if cuda else "cpu")
    parser.add_argument("--threads", type=int, help="CPU threads (all cores)")
    return parser.parse_args()


def defaults(name: str, device: torch.device, options: argparse.Namespace) -> Settings:
    quick = options.quick
    if device.type == "cuda":
        # A step of 16 rows of 4096: with eight such GPUs the batch is half a million tokens.
        settings = {
            "tiny": Settings(64, 256, 1, 3, 10 if quick else 50),
            "base-1b": Settings(8, 4096, 2, 3, 5 if quick else 20),
        }[name]
    else:
        settings = {
            "tiny": Settings(8, 256, 1, 2, 5 if quick else 30),
            "base-1b": Settings(1, 64 if quick else 256, 1, 1, 1 if quick else 3),
        }[name]
    given = {
        "rows": options.batch,
        "sequence": options.sequence,
        "microbatches": options.microbatches,
        "steps": options.steps,
    }
    return dataclasses.replace(settings, **{field: value for field, value in given.items() if value})


def fitting(name: str, config: ModelConfig, device: torch.device, options: argparse.Namespace) -> Result:
    """Measures as much of the model and of a microbatch as memory holds, and says what was left out."""
    budget = 0.75 * available_memory(device)  # the rest is for activations
    most = 6 if options.quick and device.type == "cpu" else config.layers
    layers = options.layers or min(config.layers, most)
    while layers > 1 and STATE_BYTES * dataclasses.replace(config, layers=layers).parameters() > budget:
        layers -= 1
    if layers < config.layers:
        needed, free = STATE_BYTES * config.parameters() / 2**30, available_memory(device) / 2**30
        print(
            f"\n{name}: running {layers} of its {config.layers} layers. All would need {needed:.1f} GiB for "
            f"weights, gradients and optimizer, and room for activations; {free:.1f} GiB are free."
        )
    config = dataclasses.replace(config, layers=layers)
    settings = defaults(name, device, options)
    while True:
        try:
            return measure(config, settings, device, options)
        except torch.OutOfMemoryError:
            if settings.rows == 1:
                raise
        settings = dataclasses.replace(
            settings, rows=settings.rows // 2, microbatches=settings.microbatches * 2
        )
        print(f"{name}: out of memory; trying {settings.rows} rows a microbatch")


def measure(
    config: ModelConfig, settings: Settings, device: torch.device, options: argparse.Namespace
) -> Result:
    gc.collect()
    torch.cuda.empty_cache()  # what an attempt that ran out of memory left
    torch.compiler.reset()  # graphs of another size would make this one's sizes variable, which is slower
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    with torch.device("meta"):
        model = Transformer(config)
    parallelize(
        model, precision=options.precision, compile=options.compile, checkpointing=options.checkpointing
    )
    model.to_empty(device=device)
    model.init_weights(seed=0)
    state = TrainState(model, adamw(model))
    generator = torch.Generator(device).manual_seed(0)
    shape = (settings.microbatches, settings.rows, settings.sequence + 1)
    tokens = torch.randint(config.vocabulary, shape, generator=generator, device=device)
    batch = [Batch(rows[:, :-1].contiguous(), rows[:, 1:].contiguous()) for rows in tokens]

    seconds = []
    for _ in range(settings.warmup + settings.steps):
        started = time.perf_counter()
        metrics = train_step(state, batch, learning_rate=1e-4, clip=1.0)
        synchronize(device)
        seconds.append(time.perf_counter() - started)
    step = statistics.median(seconds[settings.warmup :])
    return Result(config, settings, metrics.tokens / step, seconds[0], peak_memory(device), metrics.loss)


def report(
    name: str, result: Result, peak: float, device: torch.device, options: argparse.Namespace
) -> dict[str, float]:
    """Prints a result for people and returns its figures."""
    config, settings, rate = result.config, result.settings, result.tokens_per_second
    whole = PRESETS[name]
    per_token = {
        kind: config.flops_per_token(settings.sequence, causal=kind == "causal")
        for kind in ("causal", "full")
    }
    weights = config.layers * config.block_weights() + config.vocabulary * config.width
    how = Execution(
        settings.rows,
        settings.sequence,
        settings.microbatches,
        options.precision,
        options.checkpointing,
        options.compile,
        device=options.device,
    )
    planned = step_memory(config, how).peak
    memory = "PyTorch's CUDA allocator" if device.type == "cuda" else "resident set of the process"
    print(
        f"\n{name}: {config.parameters():,} parameters in {config.layers} layers; a step is "
        f"{settings.microbatches} x {settings.rows} rows of {settings.sequence} tokens; "
        f"{mode(options)}"
    )
    print(f"  tokens/s       {rate:,.0f}   median of {settings.steps} steps after {settings.warmup}")
    print(f"  FLOPs a token  6 x {weights:,} weights multiplied")
    print(
        f"                 + 12 x {config.layers} layers x {config.heads} heads x {config.head_width} wide x "
        f"{settings.sequence} tokens of attention, or half of that for what a causal kernel must do"
    )
    for kind, flops in per_token.items():
        print(
            f"  FLOP/s         {rate * flops / 1e12:,.4f} T with {kind} attention "
            f"({flops / 1e9:.4f} G a token): {rate * flops / peak:.1%} of the peak"
        )
    print(
        f"  peak memory    {result.peak_bytes / 2**30:.2f} GiB ({memory}); ingot plan says "
        f"{planned / 2**30:.2f} GiB, {planned / result.peak_bytes - 1:+.1%}"
    )
    print(f"  first step     {result.first_step_seconds:.1f} s; last loss {result.loss:.3f}")
    figures: dict[str, float] = {
        "parameters": config.parameters(),
        "tokens_per_second": rate,
        "peak_memory_bytes": result.peak_bytes,
        "planned_memory_bytes": planned,
        "first_step_seconds": result.first_step_seconds,
    }
    for kind, flops in per_token.items():
        figures[f"flops_per_second_{kind}"] = rate * flops
        figures[f"share_of_peak_{kind}"] = rate * flops / peak
    prefix = name.replace("-", "_")
    if config.layers < whole.layers:
        prefix += f"_{config.layers}_layers"
        extrapolated = rate * per_token["full"] / whole.flops_per_token(settings.sequence, causal=False)
        print(
            f"  extrapolated   {extrapolated:,.1f} tokens/s for all {whole.layers} layers "
            f"({whole.parameters():,} parameters) at the same FLOP/s: NOT measured"
        )
        figures["tokens_per_second_extrapolated_to_all_layers"] = extrapolated
    return {f"{prefix}_{figure}": value for figure, value in figures.items()}


def mode(options: argparse.Namespace) -> str:
    compiled = "compiled" if options.compile else "eager"
    return f"{options.precision}, {compiled}, activation checkpointing: {options.checkpointing}"


def available_memory(device: torch.device) -> int:
    """Bytes that may be allocated now: on the GPU, or in this machine's memory and this container's limit."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    meminfo = Path("/proc/meminfo")
    if not meminfo.exists():
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
    lines = dict(line.split(":") for line in meminfo.read_text().splitlines())
    available = int(lines["MemAvailable"].split()[0]) * 1024
    limit, used = Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")
    if limit.exists() and limit.read_text().strip() != "max":
        available = min(available, int(limit.read_text()) - int(used.read_text()))
    return available


def machine(device: torch.device) -> dict[str, Any]:
    processor = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [
            line.split(":")[1].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line
        ]
        processor = names[0] if names else processor
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else processor,
        "processor": processor,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
    }


if __name__ == "__main__":
    main()
