"""A training's model and optimizer on this worker: sharded, on its device, with their first values."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from ingot.errors import IngotError
from ingot.model import ModelConfig, TrainState, Transformer, adamw, data_mesh, muon, parallelize
from ingot.model.huggingface import export_folder, import_folder, model_config
from ingot.model.parallel import Precision
from ingot.pipelines.artifact import Artifact, File, load, put_file
from ingot.pipelines.sections import Training
from ingot.pipelines.store import Store
from ingot.pipelines.training.checkpoint import Place
from ingot.pipelines.training.group import Group
from ingot.pipelines.training.job import Job, SpecialTokens
from ingot.pipelines.training.state import copy_whole, part_of, whole_tensor

PRECISIONS: dict[str, Precision] = {"float32": "fp32", "bfloat16": "bf16"}


def build(store: Store, job: Job, section: Training, group: Group) -> tuple[TrainState, Place]:
    """The state before the first step, and which part of it is this worker's. Several workers shard the
    model (FSDP2); a worker alone holds all of it as plain tensors."""
    weights: Mapping[str, Tensor] = {}
    if job.initial is not None:
        config, weights = read_weights(store, job.initial)
    if job.model is not None:
        config = ModelConfig(**job.model)
    return build_model(config, weights, section, group)


def build_model(
    config: ModelConfig, weights: Mapping[str, Tensor], section: Training, group: Group
) -> tuple[TrainState, Place]:
    """The same from a configuration, and from weights or, where there are none, the section's seed."""
    mesh = data_mesh(group.device.type, section.replicas) if group.world > 1 else None
    with torch.device("meta"):  # no worker ever holds the whole model
        model = Transformer(config)
    parallelize(model, mesh, PRECISIONS[section.precision], section.compile, section.checkpointing)
    model.to_empty(device=group.device)
    if weights:
        for name, parameter in model.named_parameters():
            copy_whole(parameter, weights[name])
    else:
        model.init_weights(section.seed)
    state = TrainState(model, make_optimizer(model, section))
    if mesh is None:
        return state, Place()
    shard = mesh["shard"]
    return state, Place(shard.get_local_rank(), shard.size(), dist.get_rank() // shard.size())


def make_optimizer(model: Transformer, section: Training) -> torch.optim.Optimizer:
    """What the section asks for, over the parameters as this worker holds them."""
    if section.optimizer == "muon":
        return muon(model, weight_decay=section.weight_decay, momentum=section.momentum)
    return adamw(model, weight_decay=section.weight_decay)


def read_weights(store: Store, key: str) -> tuple[ModelConfig, Mapping[str, Tensor]]:
    """The configuration and the weights of a committed checkpoint. Raises Damaged, and IngotError where it is
    none of this architecture."""
    artifact = load(store, key)
    assert artifact is not None, key
    names = [name for name in artifact.names() if name.endswith((".json", ".safetensors"))]
    with tempfile.TemporaryDirectory() as folder:
        try:
            return import_folder(artifact.fetch(Path(folder), names))
        except ValueError as error:
            raise IngotError(str(error).replace(folder, key)) from error


def read_config(checkpoint: Artifact) -> ModelConfig:
    """The configuration of a checkpoint. Raises Damaged, and IngotError where it is none of this
    architecture."""
    try:
        return model_config(checkpoint.json("config.json"), Path(checkpoint.key) / "config.json")
    except ValueError as error:
        raise IngotError(str(error)) from error


def export(
    store: Store, model: Transformer, special: SpecialTokens, dtype: torch.dtype, group: Group
) -> dict[str, Any]:
    """The model as the files of a Hugging Face folder, stored: name → entry on rank 0, nothing elsewhere.
    Whole tensors are gathered one at a time and kept by rank 0, off the device."""
    whole: dict[str, Tensor] = {}
    for name, tensor in model.state_dict().items():
        value = whole_tensor(tensor)
        if group.rank == 0:
            whole[name] = value.to("cpu", dtype)
    if group.rank:
        return {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        export_folder(
            model.config, whole, folder, bos=special.bos, eos=list(special.eos), pad=special.pad, dtype=dtype
        )
        return {path.name: put_file(store, path.read_bytes()).to_json() for path in sorted(folder.iterdir())}


def tokenizer_files(store: Store, tokenizer: Artifact, context: int) -> dict[str, File]:
    """The tokenizer's part of a model's folder. The tokenizer serves models of any context, in tokens; here
    it gets this model's, so that programs which cut texts know where."""
    name = "tokenizer_config.json"
    config = {**tokenizer.json(name), "model_max_length": context}
    return {**tokenizer.files, name: put_file(store, json.dumps(config, indent=2).encode())}


def sizes(model: Transformer) -> dict[str, Any]:
    """How much of the model this worker holds."""
    parameters = list(model.parameters())
    return {
        "parameters": sum(parameter.numel() for parameter in parameters),
        "parameters_here": sum(part_of(parameter).local.numel() for parameter in parameters),
        "sharded": all(isinstance(parameter, torch.distributed.tensor.DTensor) for parameter in parameters),
    }
