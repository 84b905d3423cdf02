import dataclasses

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import ingot.model
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


@pytest.mark.parametrize("qk_norm", [True, False])
@pytest.mark.parametrize("tied", [True, False])
def test_parameters_are_counted_exactly(config, tied, qk_norm):
    config = dataclasses.replace(config, tied=tied, qk_norm=qk_norm)
    assert config.parameters() == sum(p.numel() for p in Transformer(config).parameters())


def test_presets_have_the_sizes_they_are_named_for():
    assert 1.6e6 < PRESETS["tiny"].parameters() < 1.9e6
    assert round(PRESETS["base-1b"].parameters() / 1e9, 3) == 1.200
    with torch.device("meta"):
        base = Transformer(PRESETS["base-1b"])
    assert PRESETS["base-1b"].parameters() == sum(p.numel() for p in base.parameters())


def test_the_ladder_passes_through_the_presets_sizes_and_stays_wide_enough():
    rungs = {depth: ModelConfig.of_depth(depth, vocabulary=32768, context=4096) for depth in range(1, 49)}
    assert PRESETS["base-1b"] == rungs[24]
    base = rungs[24]
    shape = (base.width, base.layers, base.heads, base.kv_heads, base.hidden)
    assert shape == (2048, 24, 16, 8, 5632)
    sizes = [rung.parameters() for rung in rungs.values()]
    assert sizes == sorted(set(sizes))
    assert sizes[0] < 1.0e7
    assert sizes[-1] > 8e9
    for depth, rung in rungs.items():
        assert (rung.layers, rung.head_width, rung.heads) == (depth, 128, 2 * rung.kv_heads)
        assert rung.width % 256 == rung.hidden % 256 == 0
        assert 8 / 3 <= rung.hidden / rung.width <= 3
        assert depth < 3 or 64 <= rung.width / depth <= 103
    for depth in (12, 24, 48):
        with torch.device("meta"):
            model = Transformer(rungs[depth])
        assert rungs[depth].parameters() == sum(p.numel() for p in model.parameters())
    with pytest.raises(ValueError, match=r"model\.depth: 0 .* nearest: 1"):
        ModelConfig.of_depth(0, vocabulary=512, context=64)


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


@pytest.mark.parametrize("name", ingot.model.__all__)
def test_every_name_of_the_package_is_there(name):
    assert hasattr(ingot.model, name)
