"""What Ray Train decides by, on a real cluster of two CPUs, and what it needs of Ray's private parts."""

from __future__ import annotations

import inspect
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
import ray
from ray.train import FailureConfig, RunConfig, ScalingConfig, WorkerGroupError
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

from ingot.pipelines.artifact import commit
from ingot.pipelines.store import LocalStore
from ingot.pipelines.training import elastic
from ingot.pipelines.training.elastic import SaveAndResize, SinceCheckpoint, StartWithRoom, Waiting
from ingot.pipelines.training.monitor import Monitor
from ingot.pipelines.training.show import Show
from ingot.pipelines.training.trainer import NOT_NEEDED, Trainer
from ingot.pipelines.training.worker import Room

if TYPE_CHECKING:
    from conftest import Recorder

ONE, TWO = (SimpleNamespace(num_workers=number, start_time=float("-inf")) for number in (1, 2))
RETRY, RAISE = elastic.FailureDecision.RETRY, elastic.FailureDecision.RAISE


@pytest.fixture
def monitor(ray_local: None) -> Any:
    return ray.remote(Monitor).options(num_cpus=0).remote()


@pytest.fixture
def policy(monitor: Any) -> Iterator[SaveAndResize]:
    """Of a training of one or two workers, which looks around all the time."""
    config = ScalingConfig(num_workers=(1, 2), elastic_resize_monitor_interval_s=0)
    policy = SaveAndResize(config, monitor, 1)
    policy.after_controller_start(SimpleNamespace(run_id="test"))
    yield policy
    policy.before_controller_abort()


def look(policy: SaveAndResize, group: SimpleNamespace) -> int | None:
    """The number of workers that the policy decides for, looking at a group that runs."""
    policy._latest_reserved_resources_query_time = float("-inf")  # no matter when it looked last
    decision = policy.make_decision_for_running_worker_group(group, None)
    return None if isinstance(decision, elastic.NoopDecision) else decision.num_workers


def test_a_group_is_replaced_by_a_larger_one_once_it_waits(policy: SaveAndResize, monitor: Any) -> None:
    assert look(policy, TWO) is None
    assert ray.get(monitor.room.remote()) == 0
    assert look(policy, ONE) is None
    assert ray.get(monitor.room.remote()) == 2
    monitor.tell.remote({"kind": "begin"})  # a group that has just begun was not asked yet
    assert look(policy, ONE) is None
    assert ray.get(monitor.room.remote()) == 2
    monitor.tell.remote({"kind": "paused"})
    assert look(policy, ONE) == 2


def test_a_group_goes_on_when_the_room_is_gone(policy: SaveAndResize, monitor: Any) -> None:
    look(policy, ONE)
    monitor.tell.remote({"kind": "paused"})
    look(policy, TWO)  # as if there were no more room than that
    assert ray.get(monitor.room.remote()) == 0
    look(policy, ONE)
    assert look(policy, ONE) is None  # it went on, so it has to save again


def test_a_node_that_is_taken_by_others_is_no_room(policy: SaveAndResize, monitor: Any) -> None:
    busy = ray.remote(Monitor).options(num_cpus=2).remote()
    ray.get(busy.take.remote())
    end = time.monotonic() + 20
    while ray.available_resources().get("CPU") and time.monotonic() < end:
        time.sleep(0.1)
    assert look(policy, ONE) is None
    ray.kill(busy)
    assert ray.get(monitor.room.remote()) == 0


def test_a_new_group_is_as_large_as_the_nodes_that_answer_allow(
    policy: SaveAndResize, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert policy.make_decision_for_non_running_worker_group().num_workers == 2
    policy._latest_reserved_resources_query_time = float("-inf")
    nodes = [{**node, "NodeManagerPort": 1} for node in ray.nodes()]  # where nothing listens
    monkeypatch.setattr(ray, "nodes", lambda: nodes)
    assert isinstance(policy.make_decision_for_non_running_worker_group(), elastic.NoopDecision)


def asking_actor() -> Any:
    """An actor that asks for room for two workers, as the controller of a training does."""
    policies, config, context = (StartWithRoom, SaveAndResize), ScalingConfig, SimpleNamespace

    class Asking:  # in a function, so that it reaches the actor as it is: workers can't import this module
        def ask(self, fixed: bool) -> str | None:
            start, resize = policies
            policy: Waiting = start(config(num_workers=2), None)
            if not fixed:
                policy = resize(config(num_workers=(1, 2)), None, 1)
            policy.after_controller_start(context(run_id=f"dead-{fixed}"))
            return policy._requester_id

    return ray.remote(Asking).options(num_cpus=0).remote()


def wait_for_group(policy: Waiting) -> int:
    """The workers of the group that the policy starts at last."""
    end = time.monotonic() + 30
    while time.monotonic() < end:
        policy._latest_reserved_resources_query_time = float("-inf")  # type: ignore[attr-defined]
        decision = policy.make_decision_for_non_running_worker_group()
        if not isinstance(decision, elastic.NoopDecision):
            return decision.num_workers  # type: ignore[attr-defined,no-any-return]
    raise AssertionError("no group was started")


@pytest.mark.parametrize("fixed", [True, False])
def test_the_request_of_a_training_that_is_gone_takes_no_room(
    monitor: Any, monkeypatch: pytest.MonkeyPatch, fixed: bool
) -> None:
    monkeypatch.setattr(elastic, "SILENT_SECONDS", 0.0)
    monkeypatch.setattr(elastic, "ABANDONED_SECONDS", 0.0)
    other = asking_actor()
    requester = ray.get(other.ask.remote(fixed))
    policy = SaveAndResize(ScalingConfig(num_workers=(1, 2)), monitor, 1)
    policy.after_controller_start(SimpleNamespace(run_id=f"next-{fixed}"))
    try:
        # one that lives has asked before
        assert isinstance(policy.make_decision_for_non_running_worker_group(), elastic.NoopDecision)
        waiting = {"kind": "waiting", "workers": 1, "needs": {"CPU": 1}, "room": 0}
        assert ray.get(monitor.take.remote()) == [waiting]
        ray.kill(other)
        assert wait_for_group(policy) == 2
        reserved = policy._autoscaling_coordinator.get_reserved_resources.remote(requester)
        assert ray.get(reserved) == {}
    finally:
        policy.before_controller_abort()


def test_a_fixed_group_that_has_to_wait_is_said(monitor: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(elastic, "SILENT_SECONDS", 0.0)
    policy = StartWithRoom(ScalingConfig(num_workers=2), monitor)
    policy.after_controller_start(SimpleNamespace(run_id="fixed"))
    busy = ray.remote(Monitor).options(num_cpus=1).remote()
    ray.get(busy.take.remote())
    end = time.monotonic() + 20
    while ray.available_resources().get("CPU", 0) > 1 and time.monotonic() < end:
        time.sleep(0.1)
    try:
        assert policy.make_decision_for_non_running_worker_group().num_workers == 2  # type: ignore[attr-defined]
        waiting = {"kind": "waiting", "workers": 2, "needs": {"CPU": 1}, "room": 1}
        assert ray.get(monitor.take.remote()) == [waiting]
    finally:
        ray.kill(busy)
        policy.before_controller_abort()


@pytest.mark.parametrize(
    ("workers", "needs", "room", "said"),
    [
        (1, {"CPU": 1}, 0, "for 1 worker of 1 CPU: the cluster has room for none"),
        (4, {"CPU": 2, "GPU": 1}, 3, "for 4 workers of 2 CPU and 1 GPU each: the cluster has room for 3"),
    ],
)
def test_waiting_for_room_is_said(
    recorder: Recorder, workers: int, needs: dict[str, float], room: int, said: str
) -> None:
    Show(recorder, steps=9)({"kind": "waiting", "workers": workers, "needs": needs, "room": room})
    assert [told[1] for told in recorder.told if told[0] == "say"] == [f"  waiting for room {said}"]


def test_sizes_are_whole_numbers_of_replicas(monitor: Any) -> None:
    policy = SaveAndResize(ScalingConfig(num_workers=(2, 6)), monitor, 2)
    there = [policy._count_possible_workers({"a": {"CPU": cpus}, "b": {"CPU": 1}}) for cpus in (1, 2, 4, 9)]
    assert there == [2, 2, 4, 6]


def test_the_monitors_answer_is_never_waited_for(monitor: Any) -> None:
    room = Room(monitor)
    assert room() == 0
    ray.get(monitor.ask_to_pause.remote(3))
    end = time.monotonic() + 20
    while room() != 3 and time.monotonic() < end:
        time.sleep(0.01)
    assert room() == 3


@pytest.mark.parametrize("workers", [2, (1, 2)])
def test_ray_takes_the_policies_from_the_trainer(
    monitor: Any, workers: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: dict[str, Any] = {}

    def run(trainer: DataParallelTrainer, **parts: Any) -> Any:
        given.update(parts)
        return SimpleNamespace(error=None)

    monkeypatch.setattr(DataParallelTrainer, "_initialize_and_run_controller", run)
    trainer = Trainer(
        lambda config: None,
        monitor=monitor,
        multiple=1,
        uri=str(tmp_path),
        key="artifacts/pretrain/x",
        scaling_config=ScalingConfig(num_workers=workers),
        run_config=RunConfig(failure_config=FailureConfig(max_failures=2), storage_path=str(tmp_path)),
    )
    trainer.fit()
    assert isinstance(given["failure_policy"], SinceCheckpoint)
    assert type(given["scaling_policy"]) is (StartWithRoom if workers == 2 else SaveAndResize)
    theirs, ours = (
        set(map(type, each)) for each in (trainer._create_default_callbacks(), given["callbacks"])
    )
    assert theirs - ours == set(NOT_NEEDED)


def test_neither_the_driver_nor_the_controller_waits_for_torch() -> None:
    """The policies, and what else is handed over, name modules that the controller imports."""
    words = "import ingot.pipelines.training.trainer, ingot.pipelines.training.worker, sys; "
    words += "print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", words], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


@pytest.mark.parametrize(
    ("policy", "theirs", "overridden"),
    [
        (
            SaveAndResize,
            elastic.ElasticScalingPolicy,
            {
                "make_decision_for_non_running_worker_group",
                "make_decision_for_running_worker_group",
                "_count_possible_workers",
                "_get_reserved_resources",
            },
        ),
        (Waiting, elastic.ScalingPolicy, {"after_controller_start"}),
        (StartWithRoom, elastic.FixedScalingPolicy, {"make_decision_for_non_running_worker_group"}),
        (SinceCheckpoint, elastic.FailurePolicy, {"make_decision"}),
    ],
)
def test_what_is_overridden_is_there_and_called_the_same_way(
    policy: type, theirs: type, overridden: set[str]
) -> None:
    assert overridden <= vars(policy).keys() & vars(theirs).keys()
    for name in overridden:
        here, there = (list(inspect.signature(getattr(of, name)).parameters) for of in (policy, theirs))
        assert here == there, name


def test_the_coordinator_counts_when_it_is_told_to(policy: SaveAndResize) -> None:
    ask = policy._autoscaling_coordinator.get_reserved_resources.remote
    [there] = ray.get(ask(policy._requester_id, recompute=True)).values()
    assert there["CPU"] == 2


def test_losses_are_counted_anew_after_each_checkpoint(tmp_path: Path) -> None:
    store, key = LocalStore(str(tmp_path)), "artifacts/pretrain/lossy"
    policy = SinceCheckpoint(FailureConfig(max_failures=2), store.uri, key)
    loss = WorkerGroupError("a worker was lost", {0: RuntimeError("gone")})

    def checkpoint(step: int) -> None:
        commit(store, f"{key}/checkpoints/{step:08d}", "checkpoint", "lossy", {}, {}, {})

    assert [policy.make_decision(loss) for _ in range(2)] == [RETRY, RETRY]
    checkpoint(10)
    assert [policy.make_decision(loss) for _ in range(2)] == [RETRY, RETRY]
    checkpoint(20)
    assert [policy.make_decision(loss) for _ in range(3)] == [RETRY, RETRY, RAISE]


def test_a_new_group_says_how_many_steps_are_taken_again(recorder: Recorder) -> None:
    show = Show(recorder, steps=100)
    show({"kind": "begin", "attempt": 4, "step": 50, "workers": 1, "measured": {}})  # after another driver's
    for attempt, workers, taken, step in ((5, 2, 60, 60), (6, 2, 61, 60), (7, 3, 72, 60)):
        show({"kind": "step", "step": taken})
        show({"kind": "begin", "attempt": attempt, "step": step, "workers": workers, "measured": {}})
    assert [told[1] for told in recorder.told if told[0] == "say"] == [
        "  attempt 4: 1 worker goes on at step 50 of 100",
        "  attempt 5: 2 workers go on at step 60 of 100, no step is taken again",
        "  attempt 6: 2 workers go on at step 60 of 100, 1 step is taken again",
        "  attempt 7: 3 workers go on at step 60 of 100, 12 steps are taken again",
    ]
    assert show.repeated == 13
