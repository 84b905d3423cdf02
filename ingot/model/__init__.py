"""What is trained: the model, its losses, its optimizer, its sharding and one step of training.

Plain PyTorch, and nothing else is needed; only `ingot.model.huggingface`, imported by name, needs
`safetensors` too. A name below is imported when it is asked for: whoever reads a recipe wants `ModelConfig`,
and should not wait some seconds for torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ingot.model.config import PRESETS, ModelConfig
    from ingot.model.generation import generate, logprobs
    from ingot.model.losses import IGNORED
    from ingot.model.optimizer import adamw, learning_rate
    from ingot.model.parallel import data_mesh, parallelize
    from ingot.model.sharded_muon import muon
    from ingot.model.step import (
        Batch,
        Objective,
        PreferenceBatch,
        StepMetrics,
        TrainState,
        language_model_objective,
        preference_objective,
        train_step,
    )
    from ingot.model.transformer import Transformer

__all__ = [
    "IGNORED",
    "PRESETS",
    "Batch",
    "ModelConfig",
    "Objective",
    "PreferenceBatch",
    "StepMetrics",
    "TrainState",
    "Transformer",
    "adamw",
    "data_mesh",
    "generate",
    "language_model_objective",
    "learning_rate",
    "logprobs",
    "muon",
    "parallelize",
    "preference_objective",
    "train_step",
]

_HOMES = {
    "config": ("PRESETS", "ModelConfig"),
    "generation": ("generate", "logprobs"),
    "losses": ("IGNORED",),
    "optimizer": ("adamw", "learning_rate"),
    "parallel": ("data_mesh", "parallelize"),
    "sharded_muon": ("muon",),
    "step": (
        *("Batch", "Objective", "PreferenceBatch", "StepMetrics", "TrainState"),
        *("language_model_objective", "preference_objective", "train_step"),
    ),
    "transformer": ("Transformer",),
}


def __getattr__(name: str) -> Any:
    for module, names in _HOMES.items():
        if name in names:
            return getattr(import_module(f"{__name__}.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
