"""The workers of a training as one of them sees them."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import TypeVar

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from ingot.model import Batch

AnyBatch = TypeVar("AnyBatch", bound=Batch)


@dataclass(frozen=True)
class Group:
    """Which worker this is, of how many, where its tensors live, how many rows it takes at once, and on which
    node of the cluster it is, if on any.
    Several workers are joined by torch.distributed's default group; they must ask for what is agreed on or
    totalled together."""

    rank: int
    world: int
    device: torch.device
    micro_batch: int
    node: str | None = None

    def agree(self, number: int) -> int:
        """The number that rank 0 gives."""
        if self.world == 1:
            return number
        shared = torch.tensor(number, dtype=torch.int64, device=self.device)
        dist.broadcast(shared, src=0)
        return int(shared.item())

    def totals(self, *numbers: float) -> list[float]:
        """The sums of each number over all workers, in double precision."""
        if self.world == 1:
            return list(numbers)
        shared = torch.tensor(numbers, dtype=torch.float64, device=self.device)
        dist.all_reduce(shared)
        return shared.tolist()

    def gather(self, numbers: np.ndarray) -> np.ndarray:
        """Everyone's rows of numbers (int64, of shape (rows, columns), any number of rows), one worker's
        after the other's."""
        if self.world == 1:
            return numbers
        counts = [int(count) for count in self._all(torch.tensor([len(numbers)]))]
        padded = torch.zeros((max(counts), numbers.shape[1]), dtype=torch.int64)
        padded[: len(numbers)] = torch.from_numpy(numbers)
        parts = zip(self._all(padded), counts, strict=True)
        return np.concatenate([part[:count].cpu().numpy() for part, count in parts])

    def _all(self, tensor: Tensor) -> list[Tensor]:
        """Everyone's tensor, all of one shape."""
        mine = tensor.to(self.device)
        everyones = [torch.empty_like(mine) for _ in range(self.world)]
        dist.all_gather(everyones, mine)
        return everyones

    def here(self, batch: AnyBatch) -> AnyBatch:
        """The batch with its tensors on this worker's device."""
        tensors = {part.name: getattr(batch, part.name) for part in fields(batch)}
        moved = {
            name: value.to(self.device, non_blocking=True)
            for name, value in tensors.items()
            if isinstance(value, Tensor)
        }
        return replace(batch, **moved)
