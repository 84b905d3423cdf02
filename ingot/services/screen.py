"""What a run shows: on a terminal a live line for the step under way, or a panel where it trains; without
one, plain lines."""

from __future__ import annotations

import time
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.text import Text

from ingot.services.panel import TrainingPanel
from ingot.services.summaries import size, summary

INTERVAL = 10.0  # seconds between two lines about the same step
PLAIN_COLUMNS = 120  # of a line that is cut, where there is no terminal
NOT_IN_LINES = ("gradient_norm", "flops_per_second")  # for the panel alone: lines are read one after another


class Screen:
    """A `Progress` for people."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(highlight=False)
        self.live: Progress | None = None
        self.panel: TrainingPanel | None = None
        self.panel_live: Live | None = None
        self.task = TaskID(0)
        self.stage = self.name = self.unit = ""
        self.total = self.count = 0
        self.told = 0.0
        self.first: tuple[int, float] | None = None

    def begin_stage(self, stage: str) -> None:
        self.stage = stage
        self._end_step()

    def end_stage(self, stage: str, metrics: Mapping[str, Any], skipped: bool, seconds: float) -> None:
        self._end_step()
        state = "already committed" if skipped else f"{seconds:.1f} s"
        line = escape(summary(stage, metrics))
        self.console.print(f"[bold]{stage:<11}[/bold]{state:<18} {line}", soft_wrap=True)

    def step(self, name: str, total: int, unit: str = "units") -> None:
        self._end_step()
        self.name, self.total, self.count, self.unit = name, total, 0, unit
        self.told, self.first = time.monotonic(), None
        if self.console.is_terminal:
            self.live = Progress(
                TextColumn("  {task.description}"),
                BarColumn(bar_width=28),
                MofNCompleteColumn(),
                TextColumn("{task.fields[figures]}"),
                TimeRemainingColumn(),
                console=self.console,
                transient=True,
            )
            self.live.start()
            self.task = self.live.add_task(f"{self.stage} · {name}", total=total, figures=unit)

    def advance(self, count: int = 1, **figures: float) -> None:
        self.count += count
        if self.console.is_terminal and "loss" in figures and not self.panel:
            self._begin_panel()
        if self.panel:
            self.panel.update(self.count, figures)
            return
        parts = [_figure(name, value) for name, value in figures.items() if name not in NOT_IN_LINES]
        rate = "" if figures else self._rate()
        if self.live:
            self.live.update(self.task, advance=count, figures=" · ".join(parts) or rate or self.unit)
        elif (count or "loss" in figures) and time.monotonic() - self.told > INTERVAL:
            self.told = time.monotonic()
            done = f"  {self.stage} · {self.name} {self.count}/{self.total} {self.unit}"
            self.say(" · ".join(part for part in (done, *parts, rate) if part))

    def _begin_panel(self) -> None:
        """In place of the bar. Its last state stays, to be looked back at."""
        if self.live:
            self.live.stop()
            self.live = None
        self.panel = TrainingPanel(self.stage, self.total)
        self.panel_live = Live(self.panel, console=self.console, refresh_per_second=4)
        self.panel_live.start()

    def _rate(self) -> str:
        """Of what came after the first word, which may be of units that were done long ago."""
        if self.first is None:
            self.first = (self.count, time.monotonic())
            return ""
        count, began = self.first
        return f"{(self.count - count) / max(1e-3, time.monotonic() - began):,.3g} {self.unit}/s"

    def say(self, line: str, cut: bool = False) -> None:
        if cut:
            columns = self.console.width if self.console.is_terminal else PLAIN_COLUMNS
            text = Text(line)
            text.truncate(columns, overflow="ellipsis")
            line = text.plain
        self.console.print(line, soft_wrap=True, markup=False)

    def close(self) -> None:
        self._end_step()

    def _end_step(self) -> None:
        if self.live:
            self.live.stop()
        if self.panel_live:
            self.panel_live.stop()
        self.live = self.panel = self.panel_live = None


def _figure(name: str, value: float) -> str:
    if name == "seconds_left":
        return f"{timedelta(seconds=round(value))} left"
    if name == "share_of_peak":
        return f"{value:.0%} of the peak"
    if name == "share_waited":
        return f"waiting for data {value:.1%}"
    if name == "memory_bytes":
        return f"memory {size(value)}"
    if name == "goodput":
        return f"goodput {value:.0%}"
    if name.endswith("_per_second"):
        return f"{value:,.0f} {name.removesuffix('_per_second').replace('_', ' ')}/s"
    return f"{name.replace('_', ' ')} {value:.4g}"
