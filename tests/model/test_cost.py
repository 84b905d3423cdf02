"""What a step is said to cost, against what PyTorch counts and what it really holds."""

from __future__ import annotations

import dataclasses
import weakref
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from ingot.model import ModelConfig, Transformer, cost, cpu_attention, losses, parallelize
from ingot.model.cost import Execution, microbatch_flops, step_memory

CONFIG = ModelConfig(vocabulary=640, width=64, layers=4, heads=4, kv_heads=2, hidden=160, context=64)
SHAPES = {
    "tied": {},
    "untied": {"tied": False},
    "grouped queries": {"heads": 8, "kv_heads": 1},
    "normalised heads": {"qk_norm": True},
    "wide": {"width": 128, "hidden": 512, "layers": 2},
}


@pytest.fixture
def few_logits_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (losses, cost):
        for limit in ("LOGITS_KEPT", "CPU_LOGITS"):
            monkeypatch.setattr(module, limit, 64 * CONFIG.vocabulary)


class Held(TorchDispatchMode):
    """Counts the bytes of all storages that operations make, as long as they live."""

    def __init__(self, model: Transformer) -> None:
        super().__init__()
        self.parameters = {parameter.untyped_storage()._cdata for parameter in model.parameters()}
        self.living: set[int] = set()
        self.now = self.most = 0

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = operation(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, torch.Tensor):
                self._hold(tensor.untyped_storage())
        self.most = max(self.most, self.now)
        return made

    def _hold(self, storage: torch.UntypedStorage) -> None:
        name, size = storage._cdata, storage.nbytes()
        if name not in self.parameters | self.living:
            self.living.add(name)
            self.now += size
            weakref.finalize(storage, self._free, name, size)

    def _free(self, name: int, size: int) -> None:
        self.living.discard(name)
        self.now -= size


def executions() -> Iterator[Execution]:
    for precision in ("fp32", "bf16"):
        for checkpointing in ("none", "selective", "full"):
            for microbatches in (1, 2):
                yield Execution(4, 64, microbatches, precision, checkpointing)


@pytest.mark.parametrize("how", executions(), ids=str)
@pytest.mark.parametrize("change", SHAPES.values(), ids=SHAPES)
def test_a_step_holds_what_is_planned(change: dict[str, Any], how: Execution) -> None:
    config = dataclasses.replace(CONFIG, **change)
    assert held(config, how) == pytest.approx(planned(config, how), rel=0.02)


@pytest.mark.parametrize("checkpointing", ["none", "selective", "full"])
def test_so_does_one_whose_attention_keeps_no_scores(
    checkpointing: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    how = Execution(4, 64, checkpointing=checkpointing)
    assert cost.attends_in_blocks(CONFIG, how)
    in_blocks = held(CONFIG, how)
    monkeypatch.setattr(cpu_attention, "SCORES_KEPT", 0)
    assert not cost.attends_in_blocks(CONFIG, how)
    assert in_blocks != held(CONFIG, how) == pytest.approx(planned(CONFIG, how), rel=0.02)


@pytest.mark.usefixtures("few_logits_kept")
@pytest.mark.parametrize("summed", [True, False])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_step_with_logits_in_chunks_holds_what_is_planned(precision: Any, summed: bool) -> None:
    how = Execution(4, 64, 2, precision, summed=summed)
    assert cost.is_chunked(CONFIG, how)
    assert held(CONFIG, how) == pytest.approx(planned(CONFIG, how), rel=0.05)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_so_does_one_whose_losses_are_weighed_one_by_one(precision: Any) -> None:
    how = Execution(4, 64, precision=precision, summed=False)
    assert held(CONFIG, how) == pytest.approx(planned(CONFIG, how), rel=0.02)


def planned(config: ModelConfig, how: Execution) -> int:
    """All tensors but the moments, which are the optimizer's."""
    memory = step_memory(config, how)
    return memory.peak - memory.moments - memory.unused


def held(config: ModelConfig, how: Execution) -> int:
    model = Transformer(config)
    parallelize(model, precision=how.precision, checkpointing=how.checkpointing)
    tokens = torch.zeros(how.rows, how.length, dtype=torch.long)
    with Held(model) as counter:
        for _ in range(how.microbatches):
            loss_of(model, tokens, how).backward()
    return counter.most + 4 * config.parameters()


def loss_of(model: Transformer, tokens: torch.Tensor, how: Execution) -> torch.Tensor:
    return model(tokens, tokens, summed=True)[0] if how.summed else model(tokens, tokens).sum()


@pytest.mark.parametrize("checkpointing", ["none", "full"])
@pytest.mark.parametrize("change", SHAPES.values(), ids=SHAPES)
def test_operations_are_those_that_pytorch_counts(change: dict[str, Any], checkpointing: Any) -> None:
    assert_counted(dataclasses.replace(CONFIG, **change), Execution(2, 64, checkpointing=checkpointing))


@pytest.mark.usefixtures("few_logits_kept")
@pytest.mark.parametrize("summed", [True, False])
def test_logits_in_chunks_are_counted_twice_unless_losses_are_summed(summed: bool) -> None:
    assert_counted(CONFIG, Execution(2, 64, summed=summed))


def assert_counted(config: ModelConfig, how: Execution) -> None:
    with torch.device("meta"):  # there attention is made of products that are counted, both passes alike
        model = Transformer(config)
        tokens = torch.empty(how.rows, how.length, dtype=torch.long)
    parallelize(model, checkpointing=how.checkpointing)
    with FlopCounterMode(display=False) as counter:
        loss_of(model, tokens, how).backward()
    assert microbatch_flops(config, how) == pytest.approx(counter.get_total_flops(), rel=0.01)


def test_workers_that_share_a_model_hold_their_part_of_it() -> None:
    alone, shared = (step_memory(CONFIG, Execution(4, 64, workers=workers)) for workers in (1, 4))
    assert shared.parameters == alone.parameters // 4
    assert shared.moments == alone.moments // 4
    assert shared.activations == alone.activations
    copies = step_memory(CONFIG, Execution(4, 64, workers=4, replicas=4))
    assert copies.parameters == alone.parameters
