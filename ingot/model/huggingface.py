"""A model as a Hugging Face folder of a stock architecture, so any engine that knows that one serves it:
`LlamaForCausalLM` or, with `ModelConfig.qk_norm`, `Qwen3ForCausalLM`.

The same weights and configuration give the same bytes: nothing in the files tells time, host or version.
Needs `safetensors`, which the rest of `ingot.model` does not, so it is imported by name where it is used.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from ingot.model.config import ModelConfig
from ingot.model.transformer import Transformer

StateDict = Mapping[str, Tensor]

# Our names and theirs; `{}` is the block's number.
NAMES = {
    "embedding.weight": "model.embed_tokens.weight",
    "blocks.{}.attention_norm.weight": "model.layers.{}.input_layernorm.weight",
    "blocks.{}.attention.query.weight": "model.layers.{}.self_attn.q_proj.weight",
    "blocks.{}.attention.key.weight": "model.layers.{}.self_attn.k_proj.weight",
    "blocks.{}.attention.value.weight": "model.layers.{}.self_attn.v_proj.weight",
    "blocks.{}.attention.query_norm.weight": "model.layers.{}.self_attn.q_norm.weight",
    "blocks.{}.attention.key_norm.weight": "model.layers.{}.self_attn.k_norm.weight",
    "blocks.{}.attention.output.weight": "model.layers.{}.self_attn.o_proj.weight",
    "blocks.{}.feed_forward_norm.weight": "model.layers.{}.post_attention_layernorm.weight",
    "blocks.{}.feed_forward.gate.weight": "model.layers.{}.mlp.gate_proj.weight",
    "blocks.{}.feed_forward.up.weight": "model.layers.{}.mlp.up_proj.weight",
    "blocks.{}.feed_forward.down.weight": "model.layers.{}.mlp.down_proj.weight",
    "norm.weight": "model.norm.weight",
    "head.weight": "lm_head.weight",
}

# What a stock architecture has when its configuration is silent, for the settings that we read.
DEFAULTS: dict[str, dict[str, Any]] = {
    "LlamaForCausalLM": {
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-6,
        "tie_word_embeddings": False,
    },
    "Qwen3ForCausalLM": {
        "hidden_act": "silu",
        "attention_bias": False,
        "use_sliding_window": False,
        "head_dim": 128,
        "max_position_embeddings": 32768,
        "rms_norm_eps": 1e-6,
        "tie_word_embeddings": False,
    },
}
ONLY = {"hidden_act": "silu", "attention_bias": False, "mlp_bias": False, "use_sliding_window": False}

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def export_folder(
    config: ModelConfig,
    state_dict: StateDict,
    folder: Path | str,
    *,
    bos: int,
    eos: int | list[int],
    pad: int,
    dtype: torch.dtype | None = None,
    shard_bytes: int = 5_000_000_000,
) -> None:
    """Writes config.json, generation_config.json and the weights into `folder`, which is made if need be.

    `state_dict` is a `Transformer`'s, with full tensors (gather sharded ones first); they are cast to
    `dtype` if it is given. Weights of more than `shard_bytes` are cut into files of at most that and an
    index. `eos` may be several tokens: each ends a text. The tokenizer's files are the caller's to add.

    Raises ValueError when the state dict is not one of this configuration, or weights are there already.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    if stale := sorted(path.name for path in folder.glob("*.safetensors")):
        raise ValueError(f"{folder}: already holds {', '.join(stale)}; export into an empty folder")
    check_tensors(config, state_dict, "the state dict to export")
    tensors = {
        theirs: state_dict[ours].detach().to("cpu", dtype).contiguous()
        for ours, theirs in tensor_names(config).items()
    }
    stored, *others = {tensor.dtype for tensor in tensors.values()}
    if others or stored not in DTYPES.values():
        raise ValueError(f"tensors of {[stored, *others]}: export in one dtype of {', '.join(DTYPES)}")
    special = {"bos_token_id": bos, "eos_token_id": eos, "pad_token_id": pad}
    write_json(folder / "config.json", stock_config(config, stored) | special)
    write_json(folder / "generation_config.json", special)

    files = list(shards(tensors, shard_bytes))
    if len(files) == 1:
        save_file(files[0], folder / "model.safetensors", {"format": "pt"})
        return
    weight_map: dict[str, str] = {}
    for number, shard in enumerate(files, start=1):
        name = f"model-{number:05d}-of-{len(files):05d}.safetensors"
        save_file(shard, folder / name, {"format": "pt"})
        weight_map |= dict.fromkeys(shard, name)
    size = sum(tensor.nbytes for tensor in tensors.values())
    index = {"metadata": {"total_size": size}, "weight_map": weight_map}
    write_json(folder / "model.safetensors.index.json", index)


def import_folder(folder: Path | str) -> tuple[ModelConfig, dict[str, Tensor]]:
    """Reads a folder of stock Llama or Qwen3 weights: the configuration and a `Transformer`'s state dict.

    The tensors keep the precision they are stored in. Raises ValueError, with the mend where there is one,
    when the folder holds anything that this model does not express.
    """
    folder = Path(folder)
    if not (folder / "config.json").is_file():
        raise ValueError(f"{folder}: no config.json; give the folder of a Hugging Face model")
    config = model_config(json.loads((folder / "config.json").read_text()), folder / "config.json")
    index = folder / "model.safetensors.index.json"
    names = {"model.safetensors"}
    if index.is_file():
        names = set(json.loads(index.read_text())["weight_map"].values())
    if absent := sorted(name for name in names if not (folder / name).is_file()):
        raise ValueError(
            f"{folder}: no {', '.join(absent)}; weights in other formats can run code when they are loaded: "
            f"convert them with transformers' save_pretrained"
        )
    stored = {name: tensor for file in sorted(names) for name, tensor in load_file(folder / file).items()}
    embedding, head = stored.get("model.embed_tokens.weight"), stored.get("lm_head.weight")
    if config.tied and head is not None and embedding is not None:
        if not torch.equal(embedding, head):
            raise ValueError(
                f"{folder}: tie_word_embeddings is true but lm_head.weight differs from the embedding; "
                f"set it to false in config.json"
            )
        del stored["lm_head.weight"]
    ours = {theirs: ours for ours, theirs in tensor_names(config).items()}
    # Early Llama checkpoints store the rotation's frequencies, which follow from rope_theta.
    state_dict = {
        ours.get(name, name): tensor
        for name, tensor in stored.items()
        if not name.endswith("rotary_emb.inv_freq")
    }
    check_tensors(config, state_dict, str(folder))
    return config, {name: state_dict[name] for name in ours.values()}


def stock_config(config: ModelConfig, dtype: torch.dtype) -> dict[str, Any]:
    """The configuration in Hugging Face's words, without the special tokens."""
    name = next(name for name, value in DTYPES.items() if value == dtype)
    if config.qk_norm:
        kind = {"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "use_sliding_window": False}
    else:
        kind = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "mlp_bias": False}
    return {
        **kind,
        "vocab_size": config.vocabulary,
        "hidden_size": config.width,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_width,
        "intermediate_size": config.hidden,
        "hidden_act": "silu",
        "attention_bias": False,
        "max_position_embeddings": config.context,
        "rms_norm_eps": config.norm_epsilon,
        "tie_word_embeddings": config.tied,
        "rope_parameters": {"rope_type": "default", "rope_theta": config.rope_theta},
        "dtype": name,
        # The last two again, for readers that know transformers 4 only.
        "rope_theta": config.rope_theta,
        "torch_dtype": name,
    }


def model_config(stock: Mapping[str, Any], place: Path) -> ModelConfig:
    """The configuration in our words. Raises ValueError naming `place` when they do not suffice."""
    architecture, *others = stock.get("architectures") or [None]
    if others or architecture not in DEFAULTS:
        raise ValueError(
            f"{place}: architectures: {stock.get('architectures')} is not one of {', '.join(DEFAULTS)}; "
            f"choose a model of the Llama or Qwen3 architecture"
        )
    stock = DEFAULTS[architecture] | dict(stock)
    for field, only in ONLY.items():
        if stock.get(field, only) != only:
            raise ValueError(f"{place}: {field}: {stock[field]!r} is not supported, only {only!r} is")
    if stock.get("quantization_config"):
        raise ValueError(f"{place}: quantization_config: weights are quantized; choose the unquantized model")
    rope = stock.get("rope_parameters") or stock.get("rope_scaling") or {}
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind != "default" or rope.get("partial_rotary_factor", 1.0) != 1.0:
        raise ValueError(
            f"{place}: rope_parameters: positions of type {kind!r} are not supported, only plain ones; "
            f"choose a model without stretched context (Llama 2, SmolLM, Qwen3 and their kin)"
        )
    config = ModelConfig(
        vocabulary=stock["vocab_size"],
        width=stock["hidden_size"],
        layers=stock["num_hidden_layers"],
        heads=stock["num_attention_heads"],
        kv_heads=stock.get("num_key_value_heads") or stock["num_attention_heads"],
        hidden=stock["intermediate_size"],
        context=stock["max_position_embeddings"],
        rope_theta=float(rope.get("rope_theta") or stock.get("rope_theta") or 10000.0),
        norm_epsilon=stock["rms_norm_eps"],
        tied=stock["tie_word_embeddings"],
        qk_norm=architecture == "Qwen3ForCausalLM",
    )
    if (stock.get("head_dim") or config.head_width) != config.head_width:
        raise ValueError(
            f"{place}: head_dim: {stock['head_dim']} is not hidden_size / num_attention_heads "
            f"({config.head_width}); a head of another width is not supported"
        )
    return config


def tensor_names(config: ModelConfig) -> dict[str, str]:
    """Every tensor's name here and there, in the order in which the model uses them."""
    with torch.device("meta"):
        ours = Transformer(config).state_dict()
    pairs = {}
    for name in ours:
        pattern = re.sub(r"\.\d+\.", ".{}.", name)
        pairs[name] = NAMES[pattern].format(*re.findall(r"\.(\d+)\.", name))
    return pairs


def check_tensors(config: ModelConfig, state_dict: StateDict, place: str) -> None:
    with torch.device("meta"):
        expected = {name: tuple(tensor.shape) for name, tensor in Transformer(config).state_dict().items()}
    found = {name: tuple(tensor.shape) for name, tensor in state_dict.items()}
    if expected == found:
        return
    missing, extra = sorted(expected.keys() - found.keys()), sorted(found.keys() - expected.keys())
    wrong = [
        f"{name} is {found[name]}, not {expected[name]}"
        for name in expected.keys() & found.keys()
        if found[name] != expected[name]
    ]
    raise ValueError(
        f"{place}: tensors do not fit the configuration: missing {missing or 'none'}, "
        f"not expected {extra or 'none'}, of another shape {sorted(wrong) or 'none'}"
    )


def shards(tensors: dict[str, Tensor], limit: int) -> Iterator[dict[str, Tensor]]:
    """Cuts the tensors, in order, into groups of at most `limit` bytes (or one tensor)."""
    shard: dict[str, Tensor] = {}
    size = 0
    for name, tensor in tensors.items():
        if shard and size + tensor.nbytes > limit:
            yield shard
            shard, size = {}, 0
        shard[name] = tensor
        size += tensor.nbytes
    yield shard


def write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n")
