"""The path: which stages there are, what each reads, and the runner that makes what is not committed yet.

A stage is a module with `VERSION` (raised whenever the same input would give other bytes), a function
`run(workspace, section, inputs) -> Outcome`. A stage that reads from outside the store has a function
`inventory(section, store)`: what it gives is hashed into the fingerprint and handed to `run` in place of
inputs. A stage whose *how* settings may refuse what others accepted has `check(section, artifact)`."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from typing import Any

from ingot.errors import UsageError
from ingot.pipelines.artifact import Artifact, File, canonical_digest, commit, load
from ingot.pipelines.recipe import Recipe
from ingot.pipelines.runs import Attempt
from ingot.pipelines.sections import Section
from ingot.pipelines.store import Store, StoreError
from ingot.pipelines.units import Progress, Workspace

# stage → what it reads; `checkpoint` stands for the last of pretrain, sft and preference in the recipe
READS: dict[str, tuple[str, ...]] = {
    "corpus": (),
    "dedup": ("corpus",),
    "tokenizer": ("corpus", "dedup"),
    "tokens": ("corpus", "dedup", "tokenizer"),
    "pretrain": ("tokens", "tokenizer"),
    "sft": ("pretrain", "corpus", "dedup", "tokenizer"),
    "preference": ("sft", "corpus", "dedup", "tokenizer"),
    "evaluate": ("checkpoint", "tokens", "tokenizer"),
    "publish": ("checkpoint", "evaluate"),
}
TRAINING = ("preference", "sft", "pretrain")


@dataclass(frozen=True)
class Outcome:
    """What a stage made: the artifact's files, all stored already, and its metrics."""

    files: Mapping[str, File]
    metrics: Mapping[str, Any]


@dataclass(frozen=True)
class Made:
    """A stage's artifact, and whether this call made it or found it."""

    artifact: Artifact
    skipped: bool
    seconds: float


def stages_of(recipe: Recipe, until: str | None = None) -> list[str]:
    """The stages of the recipe in order. Raises UsageError for a stage whose input is missing."""
    stages = [stage for stage in READS if getattr(recipe, stage) is not None]
    for stage in stages:
        for read in READS[stage]:
            if read != "checkpoint" and read not in stages:
                raise UsageError(
                    f"the recipe has a section {stage} but no {read}, which it reads; add {read}:"
                )
            if read == "checkpoint" and not any(kind in stages for kind in TRAINING):
                raise UsageError(f"the recipe has a section {stage} but trains nothing; add pretrain:")
    if until is None:
        return stages
    if until not in stages:
        raise UsageError(f"--until {until}: the recipe's stages are {', '.join(stages)}")
    return stages[: stages.index(until) + 1]


def run_stages(
    recipe: Recipe,
    store: Store,
    attempt: Attempt,
    progress: Progress,
    stages: list[str],
    connect: Callable[[], object],
) -> dict[str, Made]:
    """Runs every stage that is not committed yet, in order; what is committed is found by its fingerprint.
    `connect` joins the cluster; it is called before work begins, and never where all is committed. Raises
    Fenced once a higher attempt of the run has begun."""
    made: dict[str, Made] = {}

    joined: list[str] = []  # by the first stage that is not committed

    def join(stage: str) -> None:
        if not joined:
            connect()
            joined.append(stage)
            _refuse_too_many(recipe, stages[stages.index(stage) :], progress)

    for stage in stages:
        section: Section = getattr(recipe, stage)
        inputs = {read: made[name].artifact for read, name in inputs_of(stage, stages).items()}
        attempt.begin(stage)
        progress.begin_stage(stage)
        began = time.time()
        try:
            attempt.refuse_if_fenced()
            artifact, skipped = run_stage(
                recipe, store, progress, stage, section, inputs, partial(join, stage), attempt
            )
        except BaseException as error:
            with suppress(StoreError):  # the store may be what failed
                attempt.fail(stage, error, time.time() - began)
            raise
        made[stage] = Made(artifact, skipped, time.time() - began)
        attempt.commit(stage, artifact, skipped, made[stage].seconds)
        progress.end_stage(stage, artifact.metrics, skipped, made[stage].seconds)
    return made


def _refuse_too_many(recipe: Recipe, stages: Sequence[str], progress: Progress) -> None:
    """Before hours of work on data: whether the cluster has room for the trainings after it."""
    trainings = [stage for stage in stages if stage in TRAINING]
    if trainings:
        from ingot.pipelines.training.launch import refuse_too_many

        for stage in trainings:
            refuse_too_many(stage, getattr(recipe, stage), progress.say)


def run_stage(
    recipe: Recipe,
    store: Store,
    progress: Progress,
    stage: str,
    section: Section,
    inputs: Mapping[str, Artifact],
    connect: Callable[[], object],
    attempt: Attempt | None = None,
) -> tuple[Artifact, bool]:
    """The stage's artifact, and whether it was there already. `attempt` is on whose behalf."""
    module = import_module(f"ingot.pipelines.{stage}")
    key, inventory = place_of(stage, section, inputs, store)
    committed = load(store, key)
    if committed is not None:
        if hasattr(module, "check"):
            module.check(section, committed)
        return committed, True
    connect()
    if attempt is not None:
        attempt.locate(stage, key)
    began = time.time()
    workspace = Workspace(store, key, progress, recipe.workers, recipe.name, attempt)
    outcome = module.run(workspace, section, inputs if inventory is None else inventory)
    workspace.refuse_if_fenced()
    provenance = {
        "seconds": time.time() - began,
        "run": recipe.name,
        "section": section.model_dump(mode="json"),
        "inputs": {
            read: {"key": artifact.key, "digest": artifact.digest} for read, artifact in inputs.items()
        },
    }
    fingerprint = key.rpartition("/")[2]
    return commit(store, key, stage, fingerprint, outcome.files, outcome.metrics, provenance), False


def place_of(
    stage: str, section: Section, inputs: Mapping[str, Artifact], store: Store
) -> tuple[str, Mapping[str, Any] | None]:
    """Where the stage's artifact is or will be, `artifacts/<stage>/<fingerprint>`, and what was found outside
    the store, if the stage reads from there. Of that the files are hashed, and not what was skipped."""
    module = import_module(f"ingot.pipelines.{stage}")
    inventory = module.inventory(section, store) if hasattr(module, "inventory") else None
    identity = {
        "stage": stage,
        "version": module.VERSION,
        "section": section.what(),
        "inputs": {read: artifact.digest for read, artifact in inputs.items()},
        "inventory": inventory and inventory["files"],
    }
    return f"artifacts/{stage}/{canonical_digest(identity)[:32]}", inventory


def inputs_of(stage: str, stages: list[str]) -> dict[str, str]:
    """Input name → the stage that makes it."""
    last = next((kind for kind in TRAINING if kind in stages), "")
    return {read: last if read == "checkpoint" else read for read in READS[stage]}
