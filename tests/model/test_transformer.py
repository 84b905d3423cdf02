import collections
import dataclasses
import functools
import math

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from ingot.model import PRESETS, ModelConfig, Transformer, generate, losses, parallelize


def rung(depth: int) -> ModelConfig:
    return ModelConfig.of_depth(depth, vocabulary=4096, context=128)


@pytest.mark.parametrize(
    "config",
    [
        PRESETS["tiny"],
        dataclasses.replace(PRESETS["tiny"], tied=False, qk_norm=True),
        *(rung(depth) for depth in (1, 3, 6)),
        pytest.param(rung(12), marks=pytest.mark.long),
    ],
    ids=lambda config: f"{config.layers}x{config.width}{'-qk_norm' if config.qk_norm else ''}",
)
def test_the_first_loss_is_the_logarithm_of_the_vocabulary(config):
    model = Transformer(config)
    model.init_weights(seed=1)
    tokens = torch.randint(config.vocabulary, (2, 129), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        loss = model(tokens[:, :-1], tokens[:, 1:]).mean().item()
    assert abs(loss - math.log(config.vocabulary)) < 0.1


def test_initial_weights_depend_on_the_seed_and_not_on_the_road_to_them(config):
    plain, again, other = (Transformer(config) for _ in range(3))
    plain.init_weights(seed=3)
    with torch.device("meta"):
        meta = Transformer(config)
    meta.to_empty(device="cpu")
    meta.init_weights(seed=3)
    torch.manual_seed(99)
    again.init_weights(seed=3)
    other.init_weights(seed=4)
    for name, value in plain.state_dict().items():
        assert torch.equal(value, again.state_dict()[name])
        assert torch.equal(value, meta.state_dict()[name])
    assert not torch.equal(plain.embedding.weight, other.embedding.weight)


def test_a_token_sees_only_what_stands_before_it(model, make_batch):
    tokens = make_batch(rows=2, length=12).tokens_BT
    changed = tokens.clone()
    changed[:, 7:] = 0
    before, after = model(tokens), model(changed)
    torch.testing.assert_close(before[:, :7], after[:, :7])
    assert not torch.allclose(before[:, 7:], after[:, 7:])


def test_losses_are_those_of_the_logits(model, make_batch):
    batch = make_batch(rows=2)
    logprobs = model(batch.tokens_BT).log_softmax(dim=-1)
    expected = -logprobs.gather(2, batch.targets_BT[..., None]).squeeze(2)
    torch.testing.assert_close(model(batch.tokens_BT, batch.targets_BT), expected)


def gradients(model: Transformer, batch) -> dict[str, torch.Tensor]:
    model(batch.tokens_BT, batch.targets_BT).sum().backward()
    return {name: parameter.grad for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("checkpointing", ["selective", "full"])
def test_activation_checkpointing_changes_no_gradient_and_no_name(config, model, make_batch, checkpointing):
    batch = make_batch(rows=2)
    checkpointed = parallelize(Transformer(config), checkpointing=checkpointing)
    checkpointed.load_state_dict(model.state_dict())
    torch.testing.assert_close(gradients(checkpointed, batch), gradients(model, batch), rtol=0, atol=0)


class Operators(TorchDispatchMode):
    """Counts what is run."""

    def __init__(self):
        super().__init__()
        self.counts = collections.Counter()

    def __torch_dispatch__(self, operator, types, inputs=(), options=None):
        self.counts[operator] += 1
        return operator(*inputs, **(options or {}))


def test_selective_checkpointing_runs_all_again_but_products_and_attention(config, make_batch):
    batch, again = make_batch(rows=2), {}
    aten = torch.ops.aten
    attention = aten._scaled_dot_product_flash_attention_for_cpu
    for checkpointing in ("none", "selective", "full"):
        model = parallelize(Transformer(config), checkpointing=checkpointing)
        loss = model(batch.tokens_BT, batch.targets_BT).sum()
        with Operators() as ran:
            loss.backward()
        kinds = (aten.mm.default, attention.default, aten.silu.default)
        again[checkpointing] = [ran.counts[kind] for kind in kinds]
    products, layers = again["none"][0], config.layers
    assert again["none"] == [products, 0, 0]
    assert again["selective"] == [products, 0, layers]
    # all of a block but its last product, whose result nobody asks for
    assert again["full"] == [products + 6 * layers, layers, layers]


@pytest.mark.parametrize("checkpointing", ["selective", "full"])
def test_compilation_changes_no_gradient(config, model, make_batch, monkeypatch, checkpointing):
    """Block by block, checkpointed, and the loss in chunks that are compiled in both passes.

    By the compiler's front end: what its back end makes of the graphs takes it two minutes, cold.
    """
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="aot_eager"))
    monkeypatch.setattr(losses, "LOGITS_KEPT", 8 * config.vocabulary)
    batch = make_batch(rows=2)
    compiled = parallelize(Transformer(config), compile=True, checkpointing=checkpointing)
    compiled.load_state_dict(model.state_dict())
    torch.testing.assert_close(gradients(compiled, batch), gradients(model, batch))
    assert generate(compiled, [[1, 2], [3]], new_tokens=4) == generate(model, [[1, 2], [3]], new_tokens=4)


def test_bf16_computes_in_bf16_and_keeps_weights_and_gradients_in_fp32(config, model, make_batch):
    batch = make_batch(rows=2)
    half = parallelize(Transformer(config), precision="bf16")
    half.load_state_dict(model.state_dict())
    seen = []
    half.blocks[1].register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    expected, found = gradients(model, batch), gradients(half, batch)
    assert seen == [torch.bfloat16]
    for name, gradient in found.items():
        assert gradient.dtype == torch.float32
        # Norms within 3%: bf16 has 8 bits.
        assert (gradient - expected[name]).norm() < 0.03 * expected[name].norm(), name
