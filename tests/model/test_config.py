import dataclasses

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from ingot.model import PRESETS, ModelConfig, Transformer


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"vocabulary": 0}, r"model\.vocabulary: 0 .* nearest: 1"),
        ({"width": 33}, r"model\.width: 33 .* nearest: 34"),
        ({"heads": 5}, r"model\.heads: 5 .* width \(32\).* nearest: 4"),
        ({"heads": 32}, r"model\.heads: 32 .* nearest: 16"),  # heads of width 1 cannot be rotated
        ({"kv_heads": 3}, r"model\.kv_heads: 3 .* heads \(4\); nearest: 4"),
        ({"rope_theta": 0.0}, r"model\.rope_theta: 0\.0"),
    ],
)
def test_a_bad_config_names_the_field_the_value_and_the_nearest_that_fits(config, change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(config, **change)


@pytest.mark.parametrize("tied", [True, False])
def test_parameters_are_counted_exactly(config, tied):
    config = dataclasses.replace(config, tied=tied)
    assert config.parameters() == sum(p.numel() for p in Transformer(config).parameters())


def test_presets_have_the_sizes_they_are_named_for():
    assert 1.6e6 < PRESETS["tiny"].parameters() < 1.9e6
    assert round(PRESETS["base-1b"].parameters() / 1e9, 3) == 1.200
    with torch.device("meta"):
        base = Transformer(PRESETS["base-1b"])
    assert PRESETS["base-1b"].parameters() == sum(p.numel() for p in base.parameters())


@pytest.mark.parametrize("name", PRESETS)
def test_flops_agree_with_the_products_that_pytorch_counts(name):
    config: ModelConfig = dataclasses.replace(PRESETS[name], layers=2)
    rows, length = 2, 128
    with torch.device("meta"):
        model = Transformer(config)
        tokens = torch.empty(rows, length, dtype=torch.long)
    with FlopCounterMode(display=False) as counter:
        model(tokens, tokens).sum().backward()
    # PyTorch counts attention in full (causal or not), and no backward of it that computes scores twice.
    ours = rows * length * config.flops_per_token(length, causal=False)
    assert counter.get_total_flops() == pytest.approx(ours, rel=0.01)
    attention = ours - rows * length * config.flops_per_token(length, causal=True)
    assert 2 * attention == rows * length * 12 * config.layers * config.width * length
