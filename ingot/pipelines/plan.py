"""What a recipe will cost, before anything is run: parameters, operations, memory a worker, objects, bytes.

The trainings follow from the recipe alone. What the stages before them write depends on the text, so of them
only what is committed in the store already is known, as `ingot run` would find it: those are not made again.
Rows of fine-tuning and preference training are counted as long as the context, which is the most they are."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from math import ceil
from typing import TYPE_CHECKING, Any

from ingot.errors import IngotError
from ingot.pipelines.artifact import PIECE_BYTES, Artifact, load
from ingot.pipelines.pipeline import TRAINING, inputs_of, place_of, stages_of
from ingot.pipelines.recipe import Recipe
from ingot.pipelines.sections import Measured, Preference, Pretrain, Sft, Training
from ingot.pipelines.store import Store
from ingot.pipelines.training.dataset import shares

if TYPE_CHECKING:
    from ingot.model import ModelConfig
    from ingot.model.cost import Execution, Memory

# Bytes of JSON, as training/checkpoint.py and training/log.py write it; beside a model's tensors they are
# little, so round figures do.
HEADER_BYTES = 120  # a tensor in the header of a safetensors file
TENSOR_BYTES = 190  # a tensor in a checkpoint's state.json
SHARD_BYTES = 75  # each of the files that hold a part of it, there
RECORD_BYTES = 110  # a tensor in a shard's record
STEP_BYTES = 580  # a step in the log
SAMPLE_BYTES = 7  # a sample's number there
SMALL_BYTES = 1000  # any other object
EXPORT_OBJECTS = 3  # of a Hugging Face folder besides pieces of weights: two configurations, the manifest


@dataclass(frozen=True)
class Written:
    """Objects that a training stores over the whole run, and what of them is there at its end."""

    checkpoints: int
    checkpoint_bytes: int
    """Of one checkpoint, all shards."""
    bytes: int
    objects: int
    bytes_left: int
    objects_left: int


@dataclass(frozen=True)
class TrainingPlan:
    """A training of a recipe, as its least number of workers does it."""

    stage: str
    workers: int
    steps: int
    rows: int
    """Of the global batch."""
    tokens: int
    """Positions of all steps."""
    flops: int
    """Of all steps, as utilisation counts them: without what is computed again."""
    flops_computed: int
    """With it, and with the rows that micro batches are filled up with."""
    execution: Execution
    memory: Memory
    saving_bytes: int
    """Of a worker's main memory: a copy of its part of the state, and some of it again while it is stored."""
    written: Written
    at_most: bool
    """Whether rows may be shorter than was counted."""


@dataclass(frozen=True)
class StagePlan:
    """A stage: its training, if it is one that is still to be made, or what is committed of it."""

    stage: str
    training: TrainingPlan | None = None
    committed_bytes: int | None = None


@dataclass(frozen=True)
class Plan:
    """What a recipe will cost. `model` is None where the recipe trains nothing."""

    recipe: str
    store: str
    model: ModelConfig | None
    stages: list[StagePlan]
    unseen: str | None
    """Why the store could not be looked at, if it could not."""

    @property
    def trainings(self) -> list[TrainingPlan]:
        return [stage.training for stage in self.stages if stage.training]

    def to_json(self) -> dict[str, Any]:
        """As JSON, with what the model's numbers give."""
        body = asdict(self)
        for stage, planned in zip(body["stages"], self.stages, strict=True):
            if planned.training:
                stage["training"]["memory"]["peak"] = planned.training.memory.peak
        if self.model:
            body["model"]["parameters"] = self.model.parameters()
        return body


def plan(recipe: Recipe, store: Store | None, unseen: str | None = None) -> Plan:
    """The plan of a recipe whose store is this one; with None nothing is looked up there."""
    made: dict[str, Artifact] = {}
    if store is not None:
        try:
            made = committed(recipe, store)
        except IngotError as error:
            unseen = str(error)
    model = None
    if recipe.pretrain:
        vocabulary = recipe.tokenizer.rounded_vocabulary
        if "tokenizer" in made:
            vocabulary = made["tokenizer"].metrics["vocabulary"]
        model = recipe.pretrain.model.config(vocabulary)
    stages = []
    for stage in stages_of(recipe):
        section = getattr(recipe, stage)
        if stage in made:
            size = sum(file.bytes for file in made[stage].files.values())
            stages.append(StagePlan(stage, committed_bytes=size))
        elif stage in TRAINING:
            assert model is not None, stage
            stages.append(StagePlan(stage, plan_training(stage, section, model)))
        else:
            stages.append(StagePlan(stage))
    return Plan(recipe.name, recipe.store, model, stages, unseen)


def committed(recipe: Recipe, store: Store) -> dict[str, Artifact]:
    """The artifacts of the first stages, as far as they are committed."""
    made: dict[str, Artifact] = {}
    if not any(True for _ in store.list("artifacts/")):
        return made  # and the sources need not be read
    stages = stages_of(recipe)
    for stage in stages:
        inputs = {read: made[name] for read, name in inputs_of(stage, stages).items()}
        artifact = load(store, place_of(stage, getattr(recipe, stage), inputs, store)[0])
        if artifact is None:
            break
        made[stage] = artifact
    return made


def plan_training(stage: str, section: Training, model: ModelConfig) -> TrainingPlan:
    """The plan of one training of `model`."""
    from ingot.model.cost import microbatch_flops, optimizer_entries, step_memory

    rows = rows_of(section)
    how = execution(section, model.context)
    positions = section.steps * rows * model.context
    computed = section.steps * how.workers * how.microbatches * microbatch_flops(model, how)
    state = ceil(4 * (model.parameters() + optimizer_entries(model, how)) / how.shards)
    return TrainingPlan(
        stage=stage,
        workers=how.workers,
        steps=section.steps,
        rows=rows,
        tokens=positions,
        flops=positions * model.flops_per_token(model.context, causal=False),
        flops_computed=computed,
        execution=how,
        memory=step_memory(model, how),
        # The file, and the piece of it that is on its way to the store.
        saving_bytes=state + min(state, PIECE_BYTES),
        written=written(section, model, how),
        at_most=not isinstance(section, Pretrain),
    )


def rows_of(section: Training) -> int:
    """Rows of tokens in the global batch; a pair is two."""
    if isinstance(section, Pretrain):
        return section.batch_tokens // section.model.context
    if isinstance(section, Preference):
        return 2 * section.batch_pairs
    assert isinstance(section, Sft)
    return section.batch_conversations


def execution(section: Training, context: int) -> Execution:
    """How each of the least number of workers runs a step."""
    from ingot.model.cost import Execution
    from ingot.pipelines.training.build import PRECISIONS

    workers, together = section.least_workers, 2 if isinstance(section, Preference) else 1
    batch = rows_of(section) // together
    own, filled = shares(batch, 0, workers, max(1, section.micro_batch // together))
    return Execution(
        rows=filled * together,
        length=context,
        microbatches=len(own),
        precision=PRECISIONS[section.precision],
        checkpointing=section.checkpointing,
        optimizer=section.optimizer,
        compile=section.compile,
        workers=workers,
        replicas=section.replicas,
        device="cuda" if section.gpus_per_worker else "cpu",
        summed=not isinstance(section, Preference),
    )


def written(section: Training, model: ModelConfig, how: Execution) -> Written:
    """What the training stores if no worker is lost."""
    from ingot.model.cost import optimizer_entries

    tensors, shards = model.tensors(), how.shards
    # A parameter's value and what the optimizer keeps of it.
    state = 4 * (model.parameters() + optimizer_entries(model, how))
    states = 3 * tensors - (7 * model.layers if how.optimizer == "muon" else 0)
    described = HEADER_BYTES + TENSOR_BYTES + (RECORD_BYTES + SHARD_BYTES) * shards
    described *= states
    shard_pieces = shards * ceil(state / shards / PIECE_BYTES)
    # The manifest, state.json and the record of it, and a record a shard.
    checkpoint = state + described + (2 + shards) * SMALL_BYTES
    checkpoint_objects = shard_pieces + 3 + shards
    saved = set(range(section.checkpoint_every, section.steps, section.checkpoint_every))
    count = len(saved | set(evaluated(section)) - {0} | {section.steps})
    left = min(count, section.keep_checkpoints)

    log = section.steps * (STEP_BYTES + SAMPLE_BYTES * rows_of(section))
    element = {"float32": 4, "bfloat16": 2}[section.precision]
    weights = element * model.parameters() + HEADER_BYTES * tensors
    # The facts of each worker, the evaluations, and what was trained.
    facts = how.workers + len(evaluated(section)) + 1
    rest = log + weights + (facts + EXPORT_OBJECTS) * SMALL_BYTES
    rest_objects = count + ceil(weights / PIECE_BYTES) + facts + EXPORT_OBJECTS
    return Written(
        checkpoints=count,
        checkpoint_bytes=checkpoint,
        bytes=count * checkpoint + rest,
        objects=count * checkpoint_objects + rest_objects,
        bytes_left=left * checkpoint + rest,
        objects_left=left * checkpoint_objects + rest_objects,
    )


def evaluated(section: Training) -> list[int]:
    """After how many steps the model is measured; a checkpoint is saved first, but for the first time."""
    if not isinstance(section, Measured):
        return []
    return [*range(0, section.steps, section.evaluate_every), section.steps]


@dataclass(frozen=True)
class Timing:
    """How long a training takes."""

    stage: str
    seconds_per_step: float
    seconds: float
    """Of all steps and, in pretraining, the evaluations without their samples."""
    tokens_per_second: float
    worker_hours: float


def timing(training: TrainingPlan, recipe: Recipe, flops_per_second: float) -> Timing:
    """With workers that together do so many operations a second, by the count of `TrainingPlan.flops`."""
    per_step = training.flops / training.steps / flops_per_second
    seconds = training.steps * per_step
    if training.stage == "pretrain":
        assert recipe.pretrain is not None
        # A forward pass is a third of what a step computes.
        share = recipe.pretrain.evaluate_tokens / recipe.pretrain.batch_tokens / 3
        seconds += len(evaluated(recipe.pretrain)) * share * per_step
    rate = training.tokens / training.steps / per_step
    return Timing(training.stage, per_step, seconds, rate, training.workers * seconds / 3600)
