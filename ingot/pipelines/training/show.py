"""What the driver shows of a training."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ingot.pipelines.units import Progress

MOST_PROMPT = 40  # signs of a prompt's end that are shown before what follows it


class Show:
    """Turns the workers' messages into progress. `repeated` is the number of steps that a group had taken
    and a later one takes again, as far as this watcher saw it."""

    def __init__(self, progress: Progress, steps: int) -> None:
        self.progress, self.steps, self.shown = progress, steps, 0
        self.taken: int | None = None  # steps, by the group that is at work or was the last one
        self.repeated = 0
        self.measured: Mapping[str, float] = {}  # by the newest evaluation
        self.progress.step("train", steps, "steps")

    def __call__(self, message: Mapping[str, Any]) -> None:
        if message["kind"] == "step":
            self.taken = message["step"]
        elif message["kind"] == "report":
            others = {name: value for name, value in message.items() if name not in ("kind", "step", "loss")}
            self._advance(message["step"], {"loss": message["loss"], **self.measured, **others})
        elif message["kind"] == "evaluation":
            self._evaluation(message)
        elif message["kind"] == "paused":
            self.progress.say(f"  room for {message['room']} workers: saved at step {message['step']}")
        elif message["kind"] == "damaged":
            self._damaged(message)
        elif message["kind"] == "waiting":
            self._waiting(message["workers"], message["needs"], message["room"])
        elif message["kind"] == "extended":
            self.progress.say(f"  extends {message['source']}: continues from its step {message['step']}")
        else:
            self._begin(**message)

    def _damaged(self, message: Mapping[str, Any]) -> None:
        steps = ", ".join(map(str, message["steps"]))
        which = (
            f"checkpoint of step {steps} is"
            if len(message["steps"]) == 1
            else f"checkpoints of steps {steps} are"
        )
        # What to do about damage, after the semicolon, is done already.
        why = f" ({message['why'].partition(';')[0]})" if message["why"] else ""
        self.progress.say(
            f"  warning: the {which} damaged and deleted{why}; training continues from that of step "
            f"{message['step']}"
        )

    def _evaluation(self, message: Mapping[str, Any]) -> None:
        self.measured = message["metrics"]
        words = ", ".join(f"{name} {value:.4g}" for name, value in self.measured.items()).replace("_", " ")
        self.progress.say(f"  step {message['step']} of {self.steps}: {words}")
        self.progress.advance(0, **self.measured)
        for sample in message["samples"]:
            prompt, continuation = one_line(sample["prompt"])[-MOST_PROMPT:], one_line(sample["continuation"])
            self.progress.say(f"    {prompt} → {continuation}", cut=True)

    def _waiting(self, workers: int, needs: Mapping[str, float], room: int) -> None:
        each = " and ".join(f"{need:g} {name}" for name, need in needs.items() if need)
        who = "1 worker" if workers == 1 else f"{workers} workers"
        each += "" if workers == 1 else " each"
        self.progress.say(
            f"  waiting for room for {who} of {each}: the cluster has room for {room or 'none'}"
        )

    def _begin(self, kind: str, attempt: int, step: int, workers: int, measured: Mapping[str, float]) -> None:
        self.measured = measured
        self._advance(step, {})
        words = ""
        if self.taken is not None:
            again = max(0, self.taken - step)
            words = f", {again or 'no'} {'step is' if again < 2 else 'steps are'} taken again"
            self.repeated += again
        self.taken = step
        if attempt > 1:
            who = "1 worker goes" if workers == 1 else f"{workers} workers go"
            self.progress.say(f"  attempt {attempt}: {who} on at step {step} of {self.steps}{words}")

    def _advance(self, step: int, figures: Mapping[str, float]) -> None:
        # after a loss of workers steps are taken again, which is no progress
        count = max(0, step - self.shown)
        self.shown += count
        if count or figures:
            self.progress.advance(count, **figures)


def one_line(text: str) -> str:
    """The text with what would break or disturb a line, such as an escape sequence, written as Python
    writes it."""
    return "".join(sign if sign.isprintable() else repr(sign)[1:-1] for sign in text)
