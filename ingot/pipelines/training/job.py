"""What a training is: the model, where its weights begin, the data, the objective, how it is measured.

A job is JSON, so that it travels to the workers as it is; parts with code are named as "module:attribute"
and come with the settings they are made from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any


@dataclass(frozen=True)
class Part:
    """A name, "module:attribute", and the settings of what it names."""

    name: str
    spec: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class SpecialTokens:
    """The ids that the exported model begins, ends and pads with."""

    bos: int
    eos: tuple[int, ...]
    pad: int


@dataclass(frozen=True)
class Prompts:
    """Texts of at least one token, how many tokens are to follow, and the key of the artifact whose tokenizer
    reads them."""

    tokenizer: str
    ids: tuple[tuple[int, ...], ...]
    new_tokens: int


@dataclass(frozen=True)
class Job:
    """What is trained on what.

    dataset: a class of the protocol `dataset.Dataset`, called with the store and the spec.
    objective: a function that is called with the spec's items as keywords and gives an
        `ingot.model.Objective`.
    evaluation: a function of the protocol `evaluation.Evaluation`, called on every worker with the model
        before the first step, after every `evaluate_every` steps and after the last, or None.
    samples: what the model is asked to go on with at each evaluation, or None.
    model: the fields of a `ModelConfig`; None takes those of `initial`.
    initial: the key of a checkpoint artifact (a Hugging Face folder) whose weights training begins with;
        None draws them from the section's seed.
    lineage: what trainings have in common that differ in how long they are and how they end alone, or None
        (see `stable`)."""

    dataset: Part
    special: SpecialTokens
    model: Mapping[str, Any] | None = None
    initial: str | None = None
    objective: Part = Part("ingot.pipelines.training.job:next_token")
    evaluation: Part | None = None
    evaluate_every: int | None = None
    samples: Prompts | None = None
    lineage: str | None = None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @staticmethod
    def from_json(body: Mapping[str, Any]) -> Job:
        parts = {name: Part(**body[name]) for name in ("dataset", "objective")}
        evaluation = Part(**body["evaluation"]) if body["evaluation"] else None
        samples = body["samples"]
        if samples:
            samples = Prompts(**{**samples, "ids": tuple(map(tuple, samples["ids"]))})
        special = SpecialTokens(**{**body["special"], "eos": tuple(body["special"]["eos"])})
        return Job(**{**body, **parts, "evaluation": evaluation, "samples": samples, "special": special})


def next_token(z_loss: float = 0.0) -> Any:
    """The objective of pretraining and fine-tuning."""
    from ingot.model import language_model_objective

    return partial(language_model_objective, z_loss=z_loss)
