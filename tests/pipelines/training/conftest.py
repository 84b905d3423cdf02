"""Token shards of a small corpus, and a model small enough to train in a second."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import pytest
import torch
from driver import Silence

from ingot.pipelines.artifact import Artifact
from ingot.pipelines.pipeline import Outcome
from ingot.pipelines.pretrain import pretraining
from ingot.pipelines.runs import Attempt
from ingot.pipelines.sections import Pretrain
from ingot.pipelines.store import LocalStore
from ingot.pipelines.training.group import Group
from ingot.pipelines.training.job import Job, Part
from ingot.pipelines.training.launch import train
from ingot.pipelines.training.loop import Loop
from ingot.pipelines.units import Progress, Workspace

if TYPE_CHECKING:
    from conftest import RunStage, SmallPath

SECTION: dict[str, Any] = {
    "model": {"width": 32, "layers": 2, "heads": 4, "kv_heads": 2, "hidden": 64, "context": 32},
    "steps": 20,
    "batch_tokens": 256,
    "learning_rate": 0.01,
    "warmup_steps": 2,
    "evaluate_tokens": 1000,
    "workers": 2,
    "micro_batch": 4,
    "checkpoint_every": 5,
    "log_every": 5,
}


@dataclass(frozen=True)
class SmallTraining:
    """A small model on the tokens of a small corpus. Every key below `artifacts/` is a training of its own,
    and all give the same model."""

    store: LocalStore
    tokens: Artifact
    tokenizer: Artifact

    def section(self, **settings: Any) -> Pretrain:
        return Pretrain.model_validate(SECTION | settings)

    def job(self, gate: str | None = None, gated_step: int = 12, **settings: Any) -> Job:
        """With a gate, the rows of one step come when this object exists."""
        job = pretraining(self.section(**settings), self.tokens, self.tokenizer)
        if gate is None:
            return job
        spec = {**job.dataset.spec, "gate": gate, "gated_step": gated_step}
        return replace(job, dataset=Part("training.gated_rows:GatedRows", spec))

    def train(
        self,
        key: str,
        progress: Progress,
        gate: str | None = None,
        attempt: Attempt | None = None,
        **settings: Any,
    ) -> Outcome:
        """As the stage does it, on Ray."""
        workspace = Workspace(self.store, key, progress, attempt=attempt)
        return train(workspace, self.section(**settings), self.job(gate, **settings))

    def train_here(
        self,
        key: str,
        run: Attempt | None = None,
        tell: Callable[[dict[str, Any]], object] = lambda message: None,
        room: Callable[[], int] | None = None,
        **settings: Any,
    ) -> Loop:
        """One worker, in this process."""
        section = self.section(workers=1, **settings)
        group = Group(0, 1, torch.device("cpu"), section.micro_batch)
        loop = Loop(self.store, key, self.job(**settings), section, group, tell, run, room)
        loop.run()
        return loop


@pytest.fixture(scope="session")
def small_training(small_path: SmallPath, run_one_stage: RunStage) -> SmallTraining:
    tokens = run_one_stage(small_path.store, "tokens", {"held_out": 0.2}, small_path.inputs)
    return SmallTraining(small_path.store, tokens, small_path.tokenizer)


@pytest.fixture(scope="session")
def uninterrupted_key() -> str:
    return "artifacts/pretrain/uninterrupted"


@pytest.fixture(scope="session")
def uninterrupted(small_training: SmallTraining, uninterrupted_key: str) -> Outcome:
    """Two workers on Ray, 20 steps in one go."""
    return small_training.train(uninterrupted_key, Silence())
