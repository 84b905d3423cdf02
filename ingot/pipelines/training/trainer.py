"""Ray Train's trainer with our policies, and with no more processes and imports than a training needs.

Whoever waits for a training to begin waits for its controller first and for its workers then. Ray's own
TorchTrainer makes the controller import torch, which only the workers use, and starts actors beside it that
do nothing here: with them a small training of two workers took 44 core-seconds, without them it takes 31."""

from __future__ import annotations

import os
from typing import Any

import ray
import ray.train
from ray.train._internal.utils import get_address_and_port
from ray.train.backend import Backend, BackendConfig
from ray.train.v2._internal.callbacks import DatasetsCallback
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

from ingot.pipelines.training.elastic import SaveAndResize, SinceCheckpoint, StartWithRoom

# The first starts an actor for datasets, but the workers read the store. The other starts one that gives the
# workers' places back if the controller alone is lost: then the run fails, and its end does that.
NOT_NEEDED = (DatasetsCallback, PlacementGroupCleanerCallback)
LEAVING_SECONDS = 30.0  # that the workers have to leave their process group before they are ended


class Trainer(DataParallelTrainer):
    """A TorchTrainer with the policies of `elastic`. `monitor` is a handle of the actor `Monitor`; the
    numbers of workers are multiples of `multiple`; the checkpoints are those of the training at `key` in the
    store at `uri`."""

    def __init__(self, worker: Any, *, monitor: Any, multiple: int, uri: str, key: str, **parts: Any) -> None:
        super().__init__(worker, backend_config=Torch(), **parts)
        self.failure_policy = SinceCheckpoint(self.run_config.failure_config, uri, key)
        self.scaling_policy: SaveAndResize | StartWithRoom = StartWithRoom(self.scaling_config, monitor)
        if self.scaling_config.elasticity_enabled:
            self.scaling_policy = SaveAndResize(self.scaling_config, monitor, multiple)

    def _initialize_and_run_controller(self, **parts: Any) -> Any:
        parts["failure_policy"], parts["scaling_policy"] = self.failure_policy, self.scaling_policy
        parts["callbacks"] = [each for each in parts["callbacks"] if not isinstance(each, NOT_NEEDED)]
        return super()._initialize_and_run_controller(**parts)


class Torch(BackendConfig):
    """What `ray.train.torch.TorchConfig` stands for, in a module that imports no torch."""

    @property
    def backend_cls(self) -> type[Backend]:
        return ProcessGroup

    @property
    def train_func_context(self) -> Any:
        return _on_its_device


class ProcessGroup(Backend):
    """Joins the workers into a process group, by Ray's own functions, which only the workers import."""

    share_cuda_visible_devices = True

    def on_start(self, worker_group: Any, backend_config: BackendConfig) -> None:
        backend = "nccl" if worker_group.get_resources_per_worker().get("GPU", 0) else "gloo"
        address, port = worker_group.execute_single(0, get_address_and_port)
        worker_group.execute(_join, backend, address, port)

    def on_shutdown(self, worker_group: Any, backend_config: BackendConfig) -> None:
        leaving = worker_group.execute_async(_leave, len(worker_group))
        ray.wait(leaving, num_returns=len(leaving), timeout=LEAVING_SECONDS)


def _join(backend: str, address: str, port: int) -> None:
    from ray.train.torch.config import _set_torch_distributed_env_vars, _setup_torch_process_group

    os.environ.update(MASTER_ADDR=address, MASTER_PORT=str(port))
    _set_torch_distributed_env_vars()
    context = ray.train.get_context()
    _setup_torch_process_group(backend, context.get_world_rank(), context.get_world_size(), "env://")


def _leave(workers: int) -> None:
    from ray.train.torch.config import _shutdown_torch

    _shutdown_torch(destroy_process_group=workers > 1)


def _on_its_device() -> Any:
    """What a worker's function runs within: on a GPU, its own is the current one."""
    from ray.train.torch.config import TorchConfigContextManager

    return TorchConfigContextManager()
