"""Real steps of a recipe's pretraining on this machine, to learn how long a step takes.

The model, the micro batches and the step are those of the training; the tokens are random, as their values
cost nothing. Processes of their own take the steps, one a worker, so that what they hold is all theirs. Where
the machine has no room for all workers, those it has room for take their own shares of the batch."""

from __future__ import annotations

import json
import os
import statistics
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing

from ingot.errors import IngotError, UsageError
from ingot.model import Batch, ModelConfig, train_step
from ingot.model.cost import Execution
from ingot.model.device import synchronize
from ingot.pipelines.plan import TrainingPlan
from ingot.pipelines.sections import Training
from ingot.pipelines.training.build import build_model
from ingot.pipelines.training.group import Group

WARMUP, STEPS = 2, 20
PATIENCE_SECONDS = 600  # then the steps taken so far must do


@dataclass(frozen=True)
class Probe:
    """What the steps took and held."""

    steps: int
    workers: int
    """Of the training's, as this machine had room for."""
    seconds_per_step: float
    """The median."""
    flops_per_second: float
    """Of one worker, by the count of `TrainingPlan.flops`."""
    peak_bytes: int
    """Of the worker that held most: of the CUDA allocator, or by how much the process grew."""


def probe(training: TrainingPlan, section: Training, config: ModelConfig) -> Probe:
    """Takes the steps. Raises UsageError where this machine has not what a worker needs."""
    world = _room(section, training)
    how = training.execution
    replicas = section.replicas if world % section.replicas == 0 else 1
    body = {name: getattr(section, name) for name in Training.model_fields}
    body |= {"workers": world, "replicas": replicas}
    with tempfile.TemporaryDirectory() as folder:
        arguments = (world, folder, body, config, how)
        try:
            torch.multiprocessing.start_processes(_take_steps, arguments, world, start_method="spawn")
        except torch.multiprocessing.ProcessExitedException as error:
            raise IngotError(
                f"--probe: a worker ended by itself ({error}); if there was too little memory: the plan asks "
                f"for {training.memory.peak:,} bytes"
            ) from error
        found = [json.loads(path.read_text()) for path in sorted(Path(folder).glob("*.json"))]
    seconds = found[0]["seconds"]
    per_step = statistics.median(seconds)
    share = training.flops / training.steps / training.workers
    peak = max(each["peak_bytes"] for each in found)
    return Probe(len(seconds), world, per_step, share / per_step, peak)


def _room(section: Training, training: TrainingPlan) -> int:
    """How many of the training's workers this machine has room for."""
    if section.gpus_per_worker:
        there = torch.cuda.device_count()
        if not there:
            raise UsageError(
                "--probe: the recipe's workers have GPUs and this machine has none; probe where they are, or "
                "see what a CPU does with: --set pretrain.gpus_per_worker=0"
            )
        return min(training.workers, there)
    return max(1, min(training.workers, int((os.cpu_count() or 1) / max(1, section.cpus_per_worker))))


def _take_steps(
    rank: int, world: int, folder: str, body: Mapping[str, Any], config: ModelConfig, how: Execution
) -> None:
    """One worker, in a process of its own."""
    section = Training(**body)
    torch.set_num_threads(max(1, int(section.cpus_per_worker)))
    device = torch.device("cuda", rank) if section.gpus_per_worker else torch.device("cpu")
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if world > 1:
        backend, meeting = ("nccl" if device.type == "cuda" else "gloo"), f"file://{folder}/meeting"
        dist.init_process_group(backend, init_method=meeting, rank=rank, world_size=world)
    before = _resident("VmRSS")
    group = Group(rank, world, device, section.micro_batch)
    state, _ = build_model(config, {}, section, group)
    generator = torch.Generator().manual_seed(rank)
    shape = (how.microbatches, how.rows, how.length + 1)
    tokens = torch.randint(config.vocabulary, shape, generator=generator)
    batches = [group.here(Batch(rows[:, :-1].contiguous(), rows[:, 1:].contiguous())) for rows in tokens]
    seconds: list[float] = []
    began = time.perf_counter()
    while len(seconds) < WARMUP + STEPS:
        started = time.perf_counter()
        train_step(state, batches, learning_rate=section.learning_rate, clip=section.clip)
        synchronize(device)
        seconds.append(time.perf_counter() - started)
        late = len(seconds) > WARMUP and time.perf_counter() - began > PATIENCE_SECONDS
        if group.agree(late):
            break
    on_gpu = device.type == "cuda"
    peak = torch.cuda.max_memory_allocated(device) if on_gpu else _resident("VmHWM") - before
    record = {"seconds": seconds[WARMUP:], "peak_bytes": peak}
    (Path(folder) / f"{rank:05d}.json").write_text(json.dumps(record))
    if world > 1:
        dist.destroy_process_group()


def _resident(which: str) -> int:
    """Bytes of this process in main memory, now (VmRSS) or at most so far (VmHWM), as Linux counts them."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines[which].split()[0]) * 1024
