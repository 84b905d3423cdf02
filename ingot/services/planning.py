"""`ingot plan`, from the command line's words to what is printed."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from ingot.errors import IngotError, UsageError
from ingot.model.cost import Memory
from ingot.pipelines.plan import Plan, Timing, TrainingPlan, plan, timing
from ingot.pipelines.recipe import Recipe, load_recipe
from ingot.pipelines.store import open_store
from ingot.services.summaries import scaled, size

if TYPE_CHECKING:
    from ingot.pipelines.training.probe import Probe


def plan_recipe(
    path: Path,
    settings: Sequence[str],
    *,
    measure: bool,
    device: str | None,
    share: float,
    price: float | None,
    as_json: bool,
) -> None:
    """Prints the plan of the recipe at `path`. `measure` takes steps on this machine; `device` is the name of
    one whose peak is known, of which training reaches `share`; `price` is that of a worker's hour. Raises
    IngotError."""
    recipe = load_recipe(path, settings)
    peak = peak_of(device) if device else None
    if measure and device:
        raise UsageError("--probe and --device: the time is taken here or reckoned; keep one")
    if price is not None and not (measure or device):
        raise UsageError("--price: a cost needs a time; add --probe, or name the GPU with --device")
    planned = look(recipe)
    pretraining = next((each for each in planned.trainings if each.stage == "pretrain"), None)
    probed: Probe | None = None
    if measure:
        probed = _probe(planned, recipe, pretraining)
    timings: list[Timing] = []
    for training in planned.trainings:
        rate = probed.flops_per_second if probed else peak * share if peak else None
        if rate is not None:
            timings.append(timing(training, recipe, training.workers * rate))
    if as_json:
        body = planned.to_json() | {
            "probe": asdict(probed) if probed else None,
            "timings": [asdict(each) | _cost(each, price) for each in timings],
        }
        return print(json.dumps(body, indent=2))
    console = Console(highlight=False)
    _print_plan(console, planned)
    if probed and pretraining:
        _print_probe(console, probed, pretraining)
    if device:
        console.print(f"\nAt {share:.0%} of {device}'s {scaled(peak or 0)}FLOP/s, {_AS_MEASURED}")
    if timings:
        console.print(_times(planned, timings, price))
    return None


_AS_MEASURED = "and without what starting workers, saving and losing them takes:"


def peak_of(device: str) -> float:
    """Dense bf16 FLOPs a second of a GPU. Raises UsageError for one that is not known."""
    from ingot.model.device import PEAKS

    known = {name.lower(): flops for name, flops in PEAKS.items()}
    if device.lower() not in known:
        raise UsageError(f"--device {device}: its peak is not known; there are: {', '.join(PEAKS)}")
    return known[device.lower()]


def look(recipe: Recipe) -> Plan:
    """The plan, with what the store has of the recipe where it can be reached."""
    try:
        return plan(recipe, open_store(recipe.store))
    except UsageError as error:
        return plan(recipe, None, str(error))


def _probe(planned: Plan, recipe: Recipe, pretraining: TrainingPlan | None) -> Probe:
    from ingot.pipelines.training.probe import probe

    if pretraining is None or recipe.pretrain is None or planned.model is None:
        raise UsageError("--probe: the recipe has no pretraining that is still to be done")
    try:
        return probe(pretraining, recipe.pretrain, planned.model)
    except FloatingPointError as error:
        raise IngotError(f"--probe: {error}") from error


def _cost(taken: Timing, price: float | None) -> dict[str, float]:
    return {} if price is None else {"cost": taken.worker_hours * price}


def _print_plan(console: Console, planned: Plan) -> None:
    for stage in planned.stages:
        if stage.committed_bytes is not None:
            console.print(f"{stage.stage} is committed already: {size(stage.committed_bytes)}")
    unknown = [each.stage for each in planned.stages if each.committed_bytes is None and not each.training]
    if planned.unseen:
        console.print(f"the store was not looked at: {planned.unseen}", markup=False, soft_wrap=True)
    if unknown:
        names = ", ".join(unknown)
        console.print(f"what {names} will write depends on the text", soft_wrap=True)
    if planned.model and planned.trainings:
        flops = scaled(planned.model.flops_per_token(planned.model.context, causal=False))
        parameters = f"{planned.model.parameters():,} parameters"
        context = f"{planned.model.context:,}"
        console.print(f"the model has {parameters}, and takes {flops}FLOP a token of a row of {context}\n")
    if planned.trainings:
        columns = ["training", "workers", "steps", "tokens", "FLOP", "memory", "written", "left"]
        console.print(_table(columns, [_row(training) for training in planned.trainings]))
        console.print("\nwhat a worker holds when a step needs most, and more of main memory while saving:")
        columns = [*(field.name for field in fields(Memory)), "saving"]
        console.print(_table(["training", *columns], [_memory(training) for training in planned.trainings]))
    if any(training.at_most for training in planned.trainings):
        console.print("≤: with rows as long as the context; they are as long as their conversations")


def _row(training: TrainingPlan) -> tuple[str, ...]:
    most, stored = ("≤ " if training.at_most else ""), training.written
    return (
        training.stage,
        str(training.workers),
        f"{training.steps:,}",
        f"{most}{scaled(training.tokens)}".rstrip(),
        f"{most}{training.flops:.2e}",
        f"{most}{size(training.memory.peak)}",
        f"{size(stored.bytes)}, {stored.objects:,} objects",
        f"{size(stored.bytes_left)}, {stored.objects_left:,}",
    )


def _memory(training: TrainingPlan) -> tuple[str, ...]:
    parts = [size(getattr(training.memory, field.name)) for field in fields(training.memory)]
    return (training.stage, *parts, size(training.saving_bytes))


def _print_probe(console: Console, probed: Probe, training: TrainingPlan) -> None:
    few = "" if probed.workers == training.workers else f" of {training.workers}, as more find no room"
    console.print(
        f"\n{probed.steps} steps here, workers {probed.workers}{few}: {probed.seconds_per_step:.3g} s each, "
        f"{scaled(probed.flops_per_second)}FLOP/s a worker, {size(probed.peak_bytes)} at most; by that, "
        f"{_AS_MEASURED}",
        soft_wrap=True,
    )


def _times(planned: Plan, timings: Sequence[Timing], price: float | None) -> Any:
    rows = []
    at_most: Mapping[str, bool] = {training.stage: training.at_most for training in planned.trainings}
    for each in timings:
        most = "≤ " if at_most[each.stage] else ""
        cost = _cost(each, price).get("cost")
        rows.append(
            (
                each.stage,
                f"{each.seconds_per_step:.3g} s",
                f"{each.tokens_per_second:,.0f}",
                f"{most}{timedelta(seconds=round(each.seconds))}",
                f"{most}{each.worker_hours:,.2f}",
                *([] if cost is None else [f"{most}{cost:,.2f}"]),
            )
        )
    columns = ["stage", "a step", "tokens/s", "time", "worker hours"]
    return _table(columns + ([] if price is None else ["cost"]), rows)


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Any:
    from rich.table import Table
    from rich.text import Text

    table = Table(*columns, box=None, header_style="bold", pad_edge=False)
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    return table
