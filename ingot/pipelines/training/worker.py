"""What Ray Train runs on each worker: the training's loop, told by Ray who is who.

The loop itself knows nothing of Ray, and no step waits for it. The driver imports this file, and the first
training waits for that: torch is imported where it trains."""

from __future__ import annotations

import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ingot.errors import IngotError
from ingot.pipelines.artifact import Damaged
from ingot.pipelines.cluster import refuse_elsewhere
from ingot.pipelines.runs import Attempt
from ingot.pipelines.sections import Training
from ingot.pipelines.store import ObjectMissing, StoreError, open_store
from ingot.pipelines.training.job import Job


def train_worker(config: Mapping[str, Any]) -> None:
    """The function that Ray Train runs on each worker. `config`: store (its URI), home (the only node that
    sees it, if not all do), key, attempt (the run's name and number, or None), section and job as JSON, and
    the driver's monitor, a handle of the actor `Monitor`."""
    import ray
    import ray.train.torch
    import torch

    from ingot.pipelines.training.group import Group
    from ingot.pipelines.training.loop import Loop

    monitor = config["monitor"]
    if ray.get(monitor.refusal.remote()) is not None:
        return
    section, context = Training(**config["section"]), ray.train.get_context()
    device = ray.train.torch.get_device() if section.gpus_per_worker else torch.device("cpu")
    torch.set_num_threads(max(1, int(section.cpus_per_worker)))
    node = ray.get_runtime_context().get_node_id()
    group = Group(context.get_world_rank(), context.get_world_size(), device, section.micro_batch, node)
    try:
        job, store = Job.from_json(config["job"]), open_store(config["store"])
        refuse_elsewhere(store, config["home"])
        # Rank 0 speaks for all, and nobody waits for an answer.
        tell = (lambda message: monitor.tell.remote(message)) if group.rank == 0 else lambda message: None
        attempt = Attempt(store, *config["attempt"]) if config["attempt"] else None
        room = None
        if group.world < section.most_workers:
            room = Room(monitor) if group.rank == 0 else lambda: 0
        Loop(store, config["key"], job, section, group, tell, attempt, room).run()
    except Exception as error:
        if not is_worth_repeating(error):
            ray.get(monitor.refuse.remote(*reason(error)))
        raise


class Room:
    """The monitor's newest answer to how much room there is. A call never waits: there is one question under
    way at a time."""

    def __init__(self, monitor: Any) -> None:
        self.monitor, self.newest = monitor, 0
        self._question = monitor.room.remote()

    def __call__(self) -> int:
        import ray

        if ray.wait([self._question], timeout=0)[0]:
            self.newest = ray.get(self._question)
            self._question = self.monitor.room.remote()
        return self.newest


def is_worth_repeating(error: Exception) -> bool:
    """Whether new workers may get past this error: a store or a peer that can't be reached (torch says
    RuntimeError), but not damaged data, a loss that is not finite, or a fault of the program."""
    if isinstance(error, StoreError):
        return not isinstance(error, Damaged | ObjectMissing)
    return isinstance(error, RuntimeError | OSError)


def reason(error: Exception) -> tuple[str, str]:
    """What to tell the person and, of what nobody foresaw, the traceback."""
    if isinstance(error, IngotError | FloatingPointError):
        return str(error), ""
    place = traceback.extract_tb(error.__traceback__)[-1]
    words = f"{type(error).__name__}: {error} ({Path(place.filename).name}:{place.lineno})"
    return words, "".join(traceback.format_exception(error))
