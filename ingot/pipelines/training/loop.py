"""What every worker of a training does: build, resume, train, save, measure, export.

The state after step s is a function of the job, the section and s: rows, learning rate and random numbers
are computed from the step, and everything else is in the checkpoint. So an attempt that begins where another
one's last checkpoint ends goes on as if nothing had happened, bit for bit with as many workers. Nothing on
the path of a step waits for the store."""

from __future__ import annotations

import json
import os
import platform
import time
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import torch

from ingot.model import Batch, StepMetrics, learning_rate, train_step
from ingot.pipelines.artifact import Damaged
from ingot.pipelines.runs import Attempt
from ingot.pipelines.sections import Training
from ingot.pipelines.store import Store
from ingot.pipelines.training.build import PRECISIONS, build, export, sizes
from ingot.pipelines.training.checkpoint import (
    CheckpointWriter,
    committed_steps,
    delete_checkpoints,
    load_checkpoint,
)
from ingot.pipelines.training.dataset import Share, load_by_name
from ingot.pipelines.training.evaluation import evaluate, read_evaluation, read_evaluations
from ingot.pipelines.training.figures import Figures, began, useful_seconds
from ingot.pipelines.training.group import Group
from ingot.pipelines.training.job import Job
from ingot.pipelines.training.log import StepLog, read_log
from ingot.pipelines.training.readahead import ReadAhead
from ingot.pipelines.training.stable import (
    copy_history,
    last_stable_step,
    newest_stable,
    publish_stable,
    training_of,
)

PAUSE_SECONDS = 0.1  # between questions of workers that wait


class Loop:
    """One worker's part in one attempt at a training. `tell` is given what a watcher may want to know:
    messages of kind "damaged", "extended", "begin", "step", "report", "paused" and "evaluation", as
    dictionaries. `run` is the attempt of the run that this is for: once a higher one has begun, nothing is
    committed. `room`, given to all workers or to none, is asked after each step for how many workers there is
    room, if for more than there are, else 0; rank 0's answer counts."""

    def __init__(
        self,
        store: Store,
        key: str,
        job: Job,
        section: Training,
        group: Group,
        tell: Callable[[dict[str, Any]], object] = lambda message: None,
        run: Attempt | None = None,
        room: Callable[[], int] | None = None,
    ) -> None:
        self.store, self.key, self.job, self.section, self.group = store, key, job, section, group
        self.tell, self.room = tell, room
        self.began = time.time()
        self.refuse_if_fenced = run.refuse_if_fenced if run else lambda: None
        self.dataset = load_by_name(job.dataset.name)(self.store, job.dataset.spec)
        self.objective = load_by_name(job.objective.name)(**job.objective.spec)

    def run(self) -> None:
        """All of it. What is in the store already is not done again."""
        # Agreed, as another run may finish between two workers' looks.
        if self.group.agree(self.store.exists(f"{self.key}/trained.json")):
            return
        self.state, place = build(self.store, self.job, self.section, self.group)
        self.attempt = self._begin_attempt()
        self.log = StepLog(self.key, self.attempt, self.group)
        keep, self.stable = self.section.keep_checkpoints, 0
        if self.job.lineage is not None:
            self.stable = last_stable_step(self.section)
        self.writer = CheckpointWriter(
            self.store, self.key, self.state, place, self.attempt, keep, self.refuse_if_fenced, self.stable
        )
        self._resume()
        self._train()
        self._evaluate()
        dtype = getattr(torch, self.section.precision)
        files = export(self.store, self.state.model, self.job.special, dtype, self.group)
        if self.group.rank == 0:
            record = {"files": files, "metrics": self._metrics()}
            self.refuse_if_fenced()
            if self.job.lineage is not None:
                publish_stable(self.store, self.job.lineage, self.key, self.stable)
            self.store.create(f"{self.key}/trained.json", json.dumps(record).encode())

    def _begin_attempt(self) -> int:
        """The number of this group of workers, which no other group has; each leaves a record below it."""
        facts = {
            "rank": self.group.rank,
            "world": self.group.world,
            "host": platform.node(),
            "node": self.group.node,  # two nodes may share a host
            "pid": os.getpid(),
            "device": str(self.group.device),
            "at": self.began,
            **sizes(self.state.model),
        }
        number = 0
        if self.group.rank == 0:
            earlier = [int(name.split("/")[-2]) for name in self.store.list(f"{self.key}/attempts/")]
            number = max(earlier, default=0) + 1
            while not self._record_worker(number, facts):
                number += 1
        number = self.group.agree(number)
        if self.group.rank:
            self._record_worker(number, facts)
        return number

    def _record_worker(self, attempt: int, facts: Mapping[str, Any]) -> bool:
        key = f"{self.key}/attempts/{attempt:06d}/worker-{self.group.rank:05d}.json"
        return self.store.create(key, json.dumps(facts).encode())

    def _resume(self) -> None:
        self._load_newest()
        self.figures = None
        if self.group.rank:
            return
        precision, config = PRECISIONS[self.section.precision], self.state.model.config
        self.figures = Figures(self.store, self.key, self.state.step, config, precision, self.group)
        measured = [line["metrics"] for line in read_evaluations(self.store, self.key)]
        facts = {"attempt": self.attempt, "step": self.state.step, "workers": self.group.world}
        self.tell({"kind": "begin", **facts, "measured": measured[-1] if measured else {}})

    def _load_newest(self) -> None:
        """Fills the state from the newest checkpoint that is whole on all workers. Damaged ones that are
        newer are deleted with a warning: their steps are taken and saved again. Raises Damaged where all
        are."""
        steps = iter(committed_steps(self.store, self.key))
        damaged: list[int] = []
        first: Damaged | None = None
        # Rank 0's list counts, as one worker may see a commit that another did not.
        while step := self.group.agree(next(steps, 0)):
            error = None
            try:
                load_checkpoint(self.store, self.key, step, self.state.model, self.state.optimizer)
            except Damaged as damage:  # of a file that perhaps this worker alone has to read
                error = damage
            first = first or error
            [failed] = self.group.totals(error is not None)
            if not failed:
                break
            damaged.append(step)
        self.state.step = step
        if not damaged:
            if not step and self.job.lineage is not None:
                self._extend(self.job.lineage)
            return
        if not step:
            place = f"{self.store.uri}/{self.key}/checkpoints/"
            raise first or Damaged(
                f"all checkpoints below {place} are damaged; restore their objects, or delete all below it "
                "to begin anew"
            )
        if self.group.rank == 0:
            self.refuse_if_fenced()
            self.tell({"kind": "damaged", "steps": damaged, "step": step, "why": str(first or "")})
            delete_checkpoints(self.store, self.key, damaged)
        self.group.agree(0)  # they are gone

    def _extend(self, lineage: str) -> None:
        """Begins where a shorter training's learning rate began to fall, if there is one."""
        step = self.group.agree(newest_stable(self.store, lineage, self.stable))
        if not step:
            return
        source = training_of(self.store, lineage, step)
        load_checkpoint(self.store, source, step, self.state.model, self.state.optimizer)
        self.state.step = step
        if self.group.rank == 0:
            copy_history(self.store, source, self.key, step)
            self.tell({"kind": "extended", "source": source, "step": step})
        self.group.agree(0)  # the copies are there

    def _train(self) -> None:
        steps, every = self.section.steps, self.section.checkpoint_every
        with ReadAhead(self._read, self.state.step, steps, self.section.read_ahead) as rows:
            while self.state.step < steps:
                step = self.state.step
                if self._evaluates(step):
                    self._evaluate()
                asked = time.perf_counter()
                share = rows.take()
                waited = time.perf_counter() - asked
                self.writer.check()
                metrics = self._step(step, [self.group.here(batch) for batch in share.batches])
                if self.figures:
                    self.figures.pause(self.writer.take_seconds_awaited())
                self._note(step, metrics, share, waited=waited)
                done = step + 1
                self.tell({"kind": "step", "step": done})
                if done % every == 0 or done in (steps, self.stable) or self._evaluates(done):
                    self._save()
                if done % self.section.log_every == 0 or done == steps:
                    self._report(step, metrics)
                if self.room and done < steps and (room := self.group.agree(self.room())):
                    self._pause(room)

    def _pause(self, room: int) -> None:
        """Commits the state as it is and waits, for the end of this group or for the room to be gone."""
        assert self.room is not None
        if self.writer.step != self.state.step:
            self._save()
        self.writer.wait()
        self.group.agree(0)  # rank 0 is here when the checkpoint is committed
        self.tell({"kind": "paused", "step": self.state.step, "room": room})
        while self.group.agree(self.room()):
            time.sleep(PAUSE_SECONDS)
        if self.figures:
            self.figures.resume()

    def _read(self, step: int) -> Share:
        """This worker's rows of a step."""
        group = self.group
        share: Share = self.dataset.share(step, group.rank, group.world, group.micro_batch)
        return share

    def _step(self, step: int, batches: Sequence[Batch]) -> StepMetrics:
        # Whatever draws random numbers in a step draws those of this step, whenever it is taken.
        torch.manual_seed(zlib.crc32(f"{self.section.seed}/{step}/{self.group.rank}".encode()))
        return train_step(
            self.state,
            batches,
            learning_rate=self._learning_rate(step),
            clip=self.section.clip,
            objective=self.objective,
        )

    def _learning_rate(self, step: int) -> float:
        section = self.section
        return learning_rate(
            step,
            steps=section.steps,
            peak=section.learning_rate,
            warmup=section.warmup_steps,
            decay=section.decay_steps,
            floor=section.floor * section.learning_rate,
            schedule=section.schedule,
        )

    def _save(self) -> None:
        """Begins to save the state as it is. Everything but the tensors follows from the step, and is written
        down for those who read a checkpoint."""
        step, section, asked = self.state.step, self.section, time.perf_counter()
        facts = {
            "optimizer": [
                {name: value for name, value in parameters.items() if name != "params"}
                for parameters in self.state.optimizer.param_groups
            ],
            "schedule": {"next_learning_rate": self._learning_rate(step), "steps": section.steps},
            "data": {"next_step": step, **asdict(self.job.dataset)},
            "random": {"seed": section.seed, "next_step": step},
            "world": self.group.world,
        }
        log = self.log.take()
        if self.group.rank:
            log = None  # the first worker's is everyone's
        self.writer.save(facts, log)
        if self.figures:
            self.figures.pause(time.perf_counter() - asked)

    def _note(self, step: int, metrics: StepMetrics, share: Share, *, waited: float) -> None:
        positions = sum(batch.tokens_BT.numel() for batch in share.batches)
        length = share.batches[0].tokens_BT.shape[1]
        line = {
            "step": step,
            "loss": metrics.loss,
            "gradient_norm": metrics.gradient_norm,
            "learning_rate": self._learning_rate(step),
            "tokens": metrics.tokens,
            **(self.figures.add(metrics.tokens, positions, length, waited) if self.figures else {}),
            "workers": self.group.world,
            "attempt": self.attempt,
            "at": time.time(),
            **metrics.extra,
        }
        self.log.add(line, share)

    def _report(self, step: int, metrics: StepMetrics) -> None:
        if self.figures is None:
            return
        message = {
            "kind": "report",
            "step": step + 1,
            "loss": metrics.loss,
            "learning_rate": self._learning_rate(step),
            "gradient_norm": metrics.gradient_norm,
            **self.figures.report(self.section.steps - step - 1),
        }
        self.figures.clear()
        self.tell(message)

    def _evaluates(self, step: int) -> bool:
        """Whether the model is measured before this step is taken, or when all are."""
        every = self.job.evaluate_every
        return self.job.evaluation is not None and (step == 0 or bool(every and step % every == 0))

    def _evaluate(self) -> None:
        """Measures the state as it is, when it is safe in the store: measuring takes memory of its own."""
        self.writer.wait()
        self.group.agree(0)  # rank 0 is here when the last checkpoint is committed
        if self.job.evaluation is None:
            return
        step = self.state.step
        new = evaluate(self.job, self.state.model, self.store, self.key, step, self.attempt, self.group)
        if self.figures and new:
            self.tell({"kind": "evaluation", **read_evaluation(self.store, self.key, step)})
            self.figures.resume()

    def _metrics(self) -> dict[str, Any]:
        lines = read_log(self.store, self.key)
        tokens, seconds = sum(line["tokens"] for line in lines), sum(line["seconds"] for line in lines)
        return {
            "parameters": self.state.model.config.parameters(),
            "steps": len(lines),
            "tokens_trained": tokens,
            "tokens_per_second": tokens / seconds,
            "loss_first": lines[0]["loss"],
            "loss_last": lines[-1]["loss"],
            "world_size": self.group.world,
            "attempts": self.attempt,
            "goodput": useful_seconds(lines) / (time.time() - began(self.store, self.key)),
            **self._measured(0, "before"),
            **self._measured(self.section.steps, "after"),
        }

    def _measured(self, step: int, when: str) -> dict[str, float]:
        if self.job.evaluation is None:
            return {}
        metrics = read_evaluation(self.store, self.key, step)["metrics"]
        return {f"{name}_{when}": value for name, value in metrics.items()}
