"""What is trained: the model, its losses, its optimizer, its sharding and one step of training.

Plain PyTorch, and nothing else is needed; only `ingot.model.huggingface`, imported by name, needs
`safetensors` too.
"""

from ingot.model.config import PRESETS, ModelConfig
from ingot.model.generate import generate, logprobs
from ingot.model.losses import IGNORED
from ingot.model.muon import muon
from ingot.model.optimizer import adamw, learning_rate
from ingot.model.parallel import data_mesh, parallelize
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
