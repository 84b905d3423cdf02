"""The live panel of a training on a terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import timedelta
from itertools import pairwise

from rich.console import Console, ConsoleOptions, RenderResult
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from ingot.services.summaries import scaled, size

WIDEST = 96  # columns
HISTORY = 20  # columns of a sparkline
LEVELS = "▁▂▃▄▅▆▇█"
NEEDED_COLUMNS = 64  # for both halves beside each other

# What stands on the right; all else is the model's and stands on the left.
SPEED = (
    "tokens_per_second",
    "share_of_peak",
    "flops_per_second",
    "share_waited",
    "memory_bytes",
    "goodput",
    "seconds_left",
)
NO_HISTORY = ("learning_rate", "gradient_norm")


class TrainingPanel:
    """Drawn anew whenever it is looked at."""

    def __init__(self, title: str, total: int) -> None:
        self.title, self.total, self.count = title, total, 0
        self.figures: Mapping[str, float] = {}
        self.history: dict[str, list[float]] = {}

    def update(self, count: int, figures: Mapping[str, float]) -> None:
        """So many steps are taken; with those of the figures that are new."""
        self.count = count
        self.figures = {**self.figures, **figures}
        for name, value in figures.items():
            if name not in (*SPEED, *NO_HISTORY):
                values = self.history.setdefault(name, [])
                if name == "loss" or values[-1:] != [
                    value
                ]:  # what is measured seldom is told again and again
                    values.append(value)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        width = min(WIDEST, options.max_width)
        left, right = _rows(), _rows()
        for name, value in self.figures.items():
            if name not in SPEED:
                history = sparkline(self.history.get(name, []), HISTORY)
                left.add_row(name.replace("_", " "), f"{value:.4g}", Text(history, style="cyan"))
        for name, words in self._speed().items():
            right.add_row(name, words)
        grid = Table.grid(padding=(0, 4))
        if width < NEEDED_COLUMNS:
            grid.add_row(left)
            grid.add_row(right)
        else:
            grid.add_row(left, right)
        share = self.count / max(1, self.total)
        remaining = self.figures.get("seconds_left")
        ahead = "" if not remaining else f" · {timedelta(seconds=round(remaining))} left"
        body = Table.grid(padding=(0, 0))
        body.add_row(ProgressBar(total=self.total, completed=self.count, width=width - 4))
        body.add_row(grid)
        yield Panel(
            body,
            title=f"{self.title} · step {self.count:,} of {self.total:,}",
            subtitle=f"{share:.0%}{ahead}",
            title_align="left",
            subtitle_align="right",
            border_style="dim",
            width=width,
        )

    def _speed(self) -> dict[str, str]:
        figures = self.figures
        if not figures:
            return {}
        return {
            "tokens/s": f"{figures['tokens_per_second']:,.0f}",
            "FLOP/s": scaled(figures["flops_per_second"]).strip(),
            "of the peak": f"{figures['share_of_peak']:.0%}",
            "waiting for data": f"{figures['share_waited']:.1%}",
            "memory": size(figures["memory_bytes"]),
            "goodput": f"{figures['goodput']:.0%}",
        }


def sparkline(values: Sequence[float], columns: int) -> str:
    """The values from left to right, as heights between the least and the most; of more values than columns,
    their means."""
    if len(values) < 2:
        return ""
    count = min(columns, len(values))
    cuts = [len(values) * number // count for number in range(count + 1)]
    parts = [values[start:end] for start, end in pairwise(cuts)]
    means = [sum(part) / len(part) for part in parts]
    least, span = min(means), max(means) - min(means)
    return "".join(LEVELS[round((mean - least) / span * 7) if span else 0] for mean in means)


def _rows() -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    return table
