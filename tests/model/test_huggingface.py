import dataclasses
import json
from pathlib import Path

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from ingot.model import ModelConfig, Transformer
from ingot.model.huggingface import export_folder, import_folder

SPECIAL = {"bos": 1, "eos": [2, 5], "pad": 3}


def build(config: ModelConfig) -> Transformer:
    model = Transformer(config)
    model.init_weights(seed=0)
    with torch.no_grad():  # norms that do something
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.uniform_(0.5, 1.5)
    return model


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.mark.parametrize("qk_norm", [False, True])
@pytest.mark.parametrize(
    "change", [{}, {"tied": False, "kv_heads": 4, "rope_theta": 5e5, "norm_epsilon": 1e-3}]
)
def test_logits_equal_those_of_transformers(config, tmp_path, change, qk_norm):
    model = build(dataclasses.replace(config, **change, qk_norm=qk_norm))
    export_folder(model.config, model.state_dict(), tmp_path, **SPECIAL)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert type(theirs) is (Qwen3ForCausalLM if qk_norm else LlamaForCausalLM)
    assert theirs.dtype == torch.float32
    assert theirs.generation_config.eos_token_id == [2, 5]
    assert theirs.config.pad_token_id == 3
    tokens = torch.randint(config.vocabulary, (3, config.context))
    with torch.no_grad():
        torch.testing.assert_close(model(tokens), theirs(tokens).logits, rtol=0, atol=1e-5)


@pytest.mark.parametrize("shard_bytes", [5_000_000_000, 10_000])
@pytest.mark.parametrize(("dtype", "qk_norm"), [(torch.float32, False), (torch.bfloat16, True)])
def test_export_import_export_gives_the_same_bytes(config, tmp_path, shard_bytes, dtype, qk_norm):
    config = dataclasses.replace(config, qk_norm=qk_norm)
    model = build(config)
    options = {**SPECIAL, "shard_bytes": shard_bytes}
    export_folder(config, model.state_dict(), tmp_path / "first", dtype=dtype, **options)
    found_config, state_dict = import_folder(tmp_path / "first")
    assert found_config == config
    for name, tensor in model.state_dict().items():
        assert torch.equal(state_dict[name], tensor.to(dtype))
    export_folder(found_config, state_dict, tmp_path / "second", **options)
    assert contents(tmp_path / "first") == contents(tmp_path / "second")
    files = list((tmp_path / "first").glob("*.safetensors"))
    assert (len(files) > 1) == (shard_bytes == 10_000)
    AutoModelForCausalLM.from_pretrained(tmp_path / "first")  # an index that does not fit would raise


KINDS = [(LlamaConfig, LlamaForCausalLM), (Qwen3Config, Qwen3ForCausalLM)]


@pytest.mark.parametrize(("configuration", "architecture"), KINDS)
@pytest.mark.parametrize("tied", [True, False])
def test_a_folder_that_transformers_wrote_is_read(tmp_path, configuration, architecture, tied):
    theirs: PreTrainedModel = architecture(
        configuration(
            vocab_size=97,
            hidden_size=32,
            intermediate_size=40,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=8,
            max_position_embeddings=24,
            rope_parameters={"rope_type": "default", "rope_theta": 20000.0},
            tie_word_embeddings=tied,
        )
    )
    with torch.no_grad():
        for parameter in theirs.parameters():  # no norm is left at ones
            if parameter.dim() == 1:
                parameter.uniform_(0.5, 1.5)
    theirs.save_pretrained(tmp_path)
    config, state_dict = import_folder(tmp_path)
    assert (config.rope_theta, config.norm_epsilon, config.tied) == (20000.0, 1e-6, tied)
    assert config.qk_norm == (architecture is Qwen3ForCausalLM)
    model = Transformer(config)
    model.load_state_dict(state_dict)
    tokens = torch.randint(97, (2, 24))
    with torch.no_grad():
        torch.testing.assert_close(model(tokens), theirs(tokens).logits, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"architectures": ["MixtralForCausalLM"]}, "architectures: .* choose a model of the Llama or Qwen3"),
        ({"architectures": None}, "architectures: None is not one of LlamaForCausalLM, Qwen3ForCausalLM"),
        ({"architectures": ["Qwen3ForCausalLM"]}, r"missing \['blocks\.0\.attention\.key_norm\.weight', "),
        ({"architectures": ["Qwen3ForCausalLM"], "use_sliding_window": True}, "use_sliding_window: True is"),
        ({"attention_bias": True}, "attention_bias: True is not supported"),
        ({"hidden_act": "gelu"}, "hidden_act: 'gelu'"),
        ({"head_dim": 64}, r"head_dim: 64 is not .* \(8\)"),
        ({"quantization_config": {"bits": 4}}, "quantization_config"),
        ({"rope_parameters": {"rope_type": "llama3", "factor": 8.0}}, "rope_parameters: .*'llama3'"),
        ({"num_hidden_layers": 3}, r"missing \['blocks\.2\."),
        ({"vocab_size": 90}, r"embedding\.weight is \(97, 32\), not \(90, 32\)"),
        ({"num_key_value_heads": 3}, r"model\.kv_heads: 3"),
    ],
)
def test_what_this_model_does_not_express_is_refused(config, tmp_path, change, message):
    export_folder(config, build(config).state_dict(), tmp_path, **SPECIAL)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ValueError, match=message):
        import_folder(tmp_path)


def test_normalised_queries_are_no_llama(config, tmp_path):
    normalised = build(dataclasses.replace(config, qk_norm=True))
    with pytest.raises(ValueError, match=r"state dict to export: .* not expected .*key_norm"):
        export_folder(config, normalised.state_dict(), tmp_path, **SPECIAL)


def test_missing_files_and_foreign_tensors_are_refused(config, tmp_path):
    state_dict = build(config).state_dict()
    with pytest.raises(ValueError, match=r"no config\.json"):
        import_folder(tmp_path)
    with pytest.raises(ValueError, match=r"not expected \['stray'\]"):
        export_folder(config, {**state_dict, "stray": torch.ones(1)}, tmp_path, **SPECIAL)
    export_folder(config, state_dict, tmp_path, **SPECIAL)
    with pytest.raises(ValueError, match=r"already holds model\.safetensors"):
        export_folder(config, state_dict, tmp_path, **SPECIAL)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"no model\.safetensors.* save_pretrained"):
        import_folder(tmp_path)
