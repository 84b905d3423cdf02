"""The figures of a training, of each step for its log and of the last few for who watches."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from ingot.model.device import peak_flops, peak_memory
from ingot.pipelines.records import read_object
from ingot.pipelines.store import Store
from ingot.pipelines.training.log import read_log

if TYPE_CHECKING:
    from ingot.model import ModelConfig
    from ingot.model.parallel import Precision
    from ingot.pipelines.training.group import Group

PEAK_SECONDS = 0.2  # for measuring the peak of a device that has no data sheet


class Figures:
    """What the steps of this attempt come to, and the training with those of earlier attempts. For rank 0,
    whose log is everyone's."""

    def __init__(
        self, store: Store, key: str, step: int, config: ModelConfig, precision: Precision, group: Group
    ) -> None:
        """`step`: at which the attempt begins; what others did after it was lost."""
        self.config, self.group = config, group
        self.peak, _ = peak_flops(group.device, precision, PEAK_SECONDS)
        self.began = began(store, key)
        self.useful = useful_seconds(line for line in read_log(store, key) if line["step"] < step)
        self.resume()
        self.clear()

    def resume(self) -> None:
        """What was done since the step before, such as evaluating, is no part of the next one."""
        self._last, self._paused = time.perf_counter(), 0.0

    def pause(self, seconds: float) -> None:
        """Saving held up the next step for so long."""
        self._paused += seconds

    def clear(self) -> None:
        """A report was made."""
        self.steps, self.tokens, self.flops, self.seconds, self.waited = 0, 0, 0.0, 0.0, 0.0

    def add(self, tokens: int, positions: int, length: int, waited: float) -> dict[str, float]:
        """A step ended, with so many targets in all and so many positions of this worker, in rows of
        `length`; its figures, for the log. `waited`: seconds that it waited for rows."""
        now = time.perf_counter()
        seconds, self._last = now - self._last, now
        # Work is done on prompts and padding too. The other workers' rows are as long as ours.
        flops = positions * self.group.world * self.config.flops_per_token(length, causal=False)
        self.steps += 1
        self.tokens += tokens
        self.flops += flops
        self.seconds += seconds
        self.waited += waited
        line = {
            "seconds": seconds,  # since the step before, saving and waiting included
            "seconds_waited": waited,  # for rows
            "seconds_paused": self._paused,  # for saving
        }
        self._paused = 0.0
        self.useful += useful_seconds([line])
        return {
            **line,
            "flops_per_second": flops / seconds,
            "share_of_peak": self._share(flops / seconds),
            "peak_memory_bytes": peak_memory(self.group.device),
            "goodput": self.useful / (time.time() - self.began),
        }

    def report(self, steps_left: int) -> dict[str, float]:
        """Of the steps since the last report."""
        flops = self.flops / self.seconds
        return {
            "tokens_per_second": self.tokens / self.seconds,
            "flops_per_second": flops,
            "share_of_peak": self._share(flops),
            "share_waited": self.waited / self.seconds,
            "memory_bytes": peak_memory(self.group.device),
            "goodput": self.useful / (time.time() - self.began),
            "seconds_left": steps_left * self.seconds / self.steps,
        }

    def _share(self, flops_per_second: float) -> float:
        return flops_per_second / (self.peak * self.group.world)


def began(store: Store, key: str) -> float:
    """When the first worker of the training's first attempt began, in seconds since 1970."""
    return float(read_object(store, f"{key}/attempts/000001/worker-00000.json", at=float)["at"])


def useful_seconds(lines: Iterable[Mapping[str, Any]]) -> float:
    """The seconds in which these steps were really taken: without waiting for rows, and without saving."""
    return sum(line["seconds"] - line["seconds_waited"] - line["seconds_paused"] for line in lines)
