"""A snapshot is a file that the format's own library reads, whatever the tensors are."""

from __future__ import annotations

import threading

import pytest
import safetensors.torch
import torch
from torch import Tensor

from ingot.pipelines.training.snapshot import Snapshot

TENSORS = {
    "b": torch.arange(6, dtype=torch.float32).view(2, 3).t(),  # not contiguous
    "a": torch.ones(5, dtype=torch.bfloat16),
    "grad": torch.full((3, 1), 2.0, requires_grad=True),
    "double": torch.tensor([1 / 3], dtype=torch.float64),
}


def taken(snapshot: Snapshot, tensors: dict[str, Tensor], note: str) -> bytes:
    snapshot.begin(tensors)
    return bytes(snapshot.copy({"checkpoint": note}))


def test_it_is_read_by_safetensors() -> None:
    data = taken(Snapshot(), TENSORS, "step 1")
    read = safetensors.torch.load(data)
    assert read.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert read[name].dtype == tensor.dtype
        assert torch.equal(read[name], tensor.detach())


def test_the_next_one_is_made_in_the_same_memory() -> None:
    snapshot = Snapshot()
    first = taken(snapshot, TENSORS, "step 9")
    changed = {name: tensor.detach() + 1 for name, tensor in TENSORS.items()}
    second = taken(snapshot, changed, "step 1000000")
    assert len(first) == len(second)
    assert b"step 1000000" in second
    assert torch.equal(safetensors.torch.load(second)["b"], changed["b"])


def test_other_tensors_than_the_first_are_refused() -> None:
    snapshot = Snapshot()
    taken(snapshot, TENSORS, "")
    with pytest.raises(ValueError, match="not those that the file was laid out for"):
        taken(snapshot, {"b": TENSORS["b"]}, "")
    snapshot.wait()  # whatever went wrong, nobody waits for ever


def test_who_changes_the_tensors_waits_until_they_are_copied() -> None:
    snapshot = Snapshot()
    snapshot.wait()
    snapshot.begin(TENSORS)
    waiting = threading.Thread(target=snapshot.wait)
    waiting.start()
    waiting.join(0.05)
    assert waiting.is_alive()
    snapshot.copy({})
    waiting.join(10)
    assert not waiting.is_alive()
