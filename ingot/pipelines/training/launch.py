"""Training as a stage runs it: workers on Ray Train, and the driver that shows what they say.

Ray Train places the workers, joins them into a process group and starts a new group when one is lost or when
there is room for more. It is told nothing of checkpoints: a group begins at the newest one that is committed
in the store, whether the group, the driver or the whole cluster was lost."""

from __future__ import annotations

import os
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from typing import Any

from ingot.errors import IngotError, UsageError
from ingot.pipelines.artifact import File
from ingot.pipelines.cluster import home_of
from ingot.pipelines.pipeline import Outcome
from ingot.pipelines.records import read_object
from ingot.pipelines.sections import Training
from ingot.pipelines.store import ObjectMissing
from ingot.pipelines.training.job import Job
from ingot.pipelines.training.monitor import Monitor
from ingot.pipelines.training.show import Show
from ingot.pipelines.units import TaskFailed, Workspace

SOONEST, LATEST, SHARE = 0.2, 1.0, 0.02
"""Seconds between two looks at what the workers told, the more the longer it takes, as such a share of that:
where the driver has no core of its own, looking takes time from a worker."""


def train(workspace: Workspace, section: Training, job: Job) -> Outcome:
    """Trains until the section's steps are taken, and gives the Hugging Face folder without the tokenizer's
    files, and metrics: parameters, steps, tokens_trained, tokens_per_second, loss_first, loss_last,
    world_size, resumed_from (the step at which the last attempt began), attempts, steps_repeated (in this
    call, after losses of workers), workers (facts on each), and the evaluation's, ending in _before and
    _after. What was trained already is found in the store."""
    record, repeated = _trained(workspace), 0
    if record is None:
        repeated = _fit(workspace, section, job)
        record = _trained(workspace)
        assert record is not None, "the workers ended without leaving a model"
    files = {name: File.from_json(entry) for name, entry in record["files"].items()}
    facts = _facts(workspace, record["metrics"]["attempts"])
    return Outcome(files, {**record["metrics"], **facts, "steps_repeated": repeated})


def _trained(workspace: Workspace) -> dict[str, Any] | None:
    try:
        return read_object(
            workspace.store, f"{workspace.key}/trained.json", files=dict[str, Any], metrics=dict[str, Any]
        )
    except ObjectMissing:
        return None


def _facts(workspace: Workspace, attempt: int) -> dict[str, Any]:
    """Who trained in the last attempt, and at which step it began."""
    store, key = workspace.store, workspace.key
    workers = [read_object(store, name) for name in store.list(f"{key}/attempts/{attempt:06d}/")]
    chunks = list(store.list(f"{key}/log/{attempt:06d}-"))
    resumed = int(chunks[0].rpartition("-")[2].removesuffix(".jsonl")) if chunks else None
    return {"workers": workers, "resumed_from": resumed}


def _fit(workspace: Workspace, section: Training, job: Job) -> int:
    """Trains on Ray Train; the number of steps that were taken more than once."""
    # Ray Train looks at its workers this often; the first and the last look are part of every training.
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")
    # Nothing here asks its watcher, an actor beside each group, which nodes are about to be taken away.
    os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    # Beside the driver: lost only with it.
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    monitor = ray.remote(Monitor).options(num_cpus=0, scheduling_strategy=here).remote()
    config = {
        "store": workspace.store.uri,
        "home": home_of(workspace.store),
        "key": workspace.key,
        "attempt": (workspace.attempt.run, workspace.attempt.number) if workspace.attempt else None,
        "section": {name: getattr(section, name) for name in Training.model_fields},
        "job": job.to_json(),
        "monitor": monitor,
    }
    show = Show(workspace.progress, section.steps)
    with tempfile.TemporaryDirectory() as folder:
        trainer = _trainer(section, config, folder)
        # Beside this thread: `fit` in the main one would take over Ctrl-C for good.
        run, began = _Run(trainer), time.monotonic()
        while run.is_alive():
            run.join(min(LATEST, max(SOONEST, SHARE * (time.monotonic() - began))))
            for message in ray.get(monitor.take.remote()):
                show(message)
    refusal = ray.get(monitor.refusal.remote())
    if refusal is not None and refusal["trace"]:
        fault = TaskFailed(refusal["words"])
        fault.add_note(refusal["trace"])
        raise fault
    if refusal is not None:
        raise IngotError(refusal["words"])
    if run.error is not None:
        raise _explained(run.error, section) from run.error
    return show.repeated


class _Run(threading.Thread):
    def __init__(self, trainer: Any) -> None:
        super().__init__(daemon=True)
        self.trainer = trainer
        self.error: BaseException | None = None
        self.start()

    def run(self) -> None:
        try:
            self.trainer.fit()
        except BaseException as error:  # for the driver's thread to raise
            self.error = error


def _trainer(section: Training, config: Mapping[str, Any], folder: str) -> Any:
    import ray.train

    from ingot.pipelines.training.trainer import Trainer
    from ingot.pipelines.training.worker import train_worker

    resources = {"CPU": section.cpus_per_worker}
    if section.gpus_per_worker:
        resources["GPU"] = section.gpus_per_worker
    return Trainer(
        train_worker,
        monitor=config["monitor"],
        multiple=section.replicas,
        uri=config["store"],
        key=config["key"],
        train_loop_config=dict(config),
        scaling_config=ray.train.ScalingConfig(
            num_workers=section.workers,
            elastic_resize_monitor_interval_s=section.resize_every,
            use_gpu=section.gpus_per_worker > 0,
            resources_per_worker=resources,
            placement_strategy=section.placement.upper(),
        ),
        # Ray Train wants a folder of its own, for checkpoints that are never reported to it.
        run_config=ray.train.RunConfig(
            name=f"ingot-{uuid.uuid4().hex[:12]}",
            storage_path=folder,
            failure_config=ray.train.FailureConfig(max_failures=section.failures),
        ),
    )


def refuse_too_many(stage: str, section: Training, say: Callable[[str], None]) -> None:
    """Raises UsageError where an embedded cluster has too little for a stage's least workers: it will never
    grow. On another cluster, which may, says what will be waited for."""
    import ray

    there = ray.cluster_resources()
    for name, each in (("CPU", section.cpus_per_worker), ("GPU", section.gpus_per_worker)):
        if section.least_workers * each <= there.get(name, 0):
            continue
        has = f"{there.get(name, 0):g} {name}s"
        short = f"{stage}: {section.least_workers} workers of {each:g} {name} each need more than the {has}"
        mend = f"set {stage}.workers or {stage}.{name.lower()}s_per_worker lower"
        if not os.environ.get("RAY_ADDRESS"):
            raise UsageError(f"{short} here; {mend}, or join a cluster by RAY_ADDRESS")
        say(f"{short} of the cluster: it will wait for more; if none come, {mend}")


def _explained(error: BaseException, section: Training) -> Exception:
    """The first cause of what Ray Train raised, in a line."""
    from ray.exceptions import RayActorError

    failures: Mapping[int, Exception] = getattr(error, "worker_failures", {})
    for rank, failure in failures.items():
        if isinstance(failure, RayActorError):  # the others only lost their peer
            return IngotError(
                f"worker {rank} was lost, the last of {section.failures + 1} such failures since a "
                f"checkpoint: {str(failure).splitlines()[0]}; run again to go on from the last checkpoint, "
                "or set failures higher to survive more"
            )
    causes = [f"worker {rank}: {str(failure).strip().splitlines()[-1]}" for rank, failure in failures.items()]
    fault = TaskFailed(causes[0] if causes else str(error).strip().splitlines()[-1])
    fault.add_note(str(error))
    return fault
