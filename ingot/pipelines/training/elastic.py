"""What Ray Train's controller decides by, where its own policies would lose steps or give up too early.

Ray Train makes a group of workers larger by ending it, without a word to the workers: all steps since the
last checkpoint would be taken again. Here they are asked to save and to wait first, and nothing is. It also
waits for room without a word; here the driver hears of it. The
policies are private parts of Ray: this file alone imports them, and its tests hold what it needs of them
against the Ray that is installed. The controller, a process that each training waits for, imports this file:
nothing here needs torch, which takes it seconds."""

from __future__ import annotations

import socket
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import ray
from ray.train import FailureConfig, ScalingConfig
from ray.train.v2._internal.execution.failure_handling import (
    DefaultFailurePolicy,
    FailureDecision,
    FailurePolicy,
)
from ray.train.v2._internal.execution.scaling_policy import (
    ElasticScalingPolicy,
    FixedScalingPolicy,
    NoopDecision,
    ScalingDecision,
    ScalingPolicy,
)

from ingot.pipelines.store import StoreError, open_store
from ingot.pipelines.training.reservations import (
    cancel_abandoned_requests,
    free_on_each_node,
    note_request,
)

WAIT_SECONDS = 0.2  # between two looks for a group's room: Ray Train's controller would look without a rest
ANSWER_SECONDS = 2.0  # that a node has to take a connection
SILENT_SECONDS = 3.0  # of waiting for room before the driver says so
AGAIN_SECONDS = 60.0  # between two such messages
ABANDONED_SECONDS = 5.0  # between two looks for requests of trainings that are gone


class SinceCheckpoint(FailurePolicy):
    """Counts the losses of workers since the last checkpoint that was committed: a training that makes
    headway between them may outlive any number."""

    def __init__(self, failure_config: FailureConfig, uri: str, key: str) -> None:
        super().__init__(failure_config)
        self.uri, self.key = uri, key
        self._newest = 0
        self._count = DefaultFailurePolicy(failure_config)

    def make_decision(self, training_failed_error: Exception) -> FailureDecision:
        newest = self._newest_step()
        if newest > self._newest:
            self._newest, self._count = newest, DefaultFailurePolicy(self.failure_config)
        return self._count.make_decision(training_failed_error)

    def _newest_step(self) -> int:
        from ingot.pipelines.training.checkpoint import newest_step

        try:
            return newest_step(open_store(self.uri), self.key) or 0
        except StoreError:  # the workers need it more, and will say so
            return 0


class Waiting(ScalingPolicy):
    """What both policies share: while a group has no room, requests of trainings that are gone are cancelled,
    and the driver is told what is waited for."""

    def __init__(self, scaling_config: ScalingConfig, monitor: Any) -> None:
        super().__init__(scaling_config)
        self.monitor = monitor
        self._since: float | None = None  # a group is waited for
        self._say_next = self._cancel_next = 0.0

    def after_controller_start(self, train_run_context: Any) -> None:
        super().after_controller_start(train_run_context)
        assert self._requester_id is not None
        note_request(self._requester_id)
        cancel_abandoned_requests(self._autoscaling_coordinator)

    def _begin(self, decision: ScalingDecision) -> ScalingDecision:
        self._since = None
        return decision

    def _wait(self, wanted: int, room: int) -> ScalingDecision:
        """Waits a moment for room for `wanted` workers; there is some for `room`."""
        now = time.monotonic()
        if self._since is None:
            self._since, self._say_next, self._cancel_next = now, now + SILENT_SECONDS, now
        if now >= self._cancel_next:  # a driver that was just killed is found dead a little later
            cancel_abandoned_requests(self._autoscaling_coordinator)
            self._cancel_next = now + ABANDONED_SECONDS
        if now >= self._say_next:
            self._say(wanted, room)
            self._say_next = now + AGAIN_SECONDS
        time.sleep(WAIT_SECONDS)
        return NoopDecision()

    def _say(self, wanted: int, room: int) -> None:
        needs = dict(self.scaling_config._resources_per_worker_not_none)
        self.monitor.tell.remote({"kind": "waiting", "workers": wanted, "needs": needs, "room": room})


class StartWithRoom(Waiting, FixedScalingPolicy):
    """Ray Train's policy for a fixed number of workers, which says where the first group has to wait."""

    def __init__(self, scaling_config: ScalingConfig, monitor: Any) -> None:
        super().__init__(scaling_config, monitor)
        self._begun = False

    def make_decision_for_non_running_worker_group(self) -> ScalingDecision:
        wanted = self.scaling_config.num_workers
        if not self._begun and (room := self._free()) < wanted:
            self._say(wanted, room)
        self._begun = True  # a later group's places are still the last one's, until Ray takes them back
        return super().make_decision_for_non_running_worker_group()

    def _free(self) -> int:
        """For how many workers there is room beside all else."""
        needs = {
            name: each for name, each in self.scaling_config._resources_per_worker_not_none.items() if each
        }
        if not needs:
            return self.scaling_config.num_workers
        return sum(
            int(min(free.get(name, 0) // each for name, each in needs.items()))
            for free in free_on_each_node().values()
        )


class SaveAndResize(Waiting, ElasticScalingPolicy):
    """Ray Train's elastic policy with three changes: workers that run save and wait before they are replaced
    by more, their number is a multiple of `multiple`, and a group begins on nodes that answer now."""

    def __init__(self, scaling_config: ScalingConfig, monitor: Any, multiple: int) -> None:
        super().__init__(scaling_config, monitor)
        self.multiple = multiple
        self._asked = False

    def make_decision_for_non_running_worker_group(self) -> ScalingDecision:
        self._asked = False
        decision = super().make_decision_for_non_running_worker_group()
        room = 0 if isinstance(decision, NoopDecision) else self._room()
        if room >= self.scaling_config.min_workers:
            return self._begin(self._get_resize_decision(room))
        return self._wait(self.scaling_config.min_workers, room)

    def make_decision_for_running_worker_group(
        self, worker_group_state: Any, worker_group_status: Any
    ) -> ScalingDecision:
        there = worker_group_state.num_workers
        if not self._asked:
            decision = super().make_decision_for_running_worker_group(worker_group_state, worker_group_status)
            if isinstance(decision, NoopDecision) or decision.num_workers < there:
                return decision
            self._asked = True
        # Asked about again at every look, until they wait: the room may go, too.
        room = self._room_beside(there)
        if room <= there:
            self._asked = False
            ray.get(self.monitor.go_on.remote())
        elif ray.get(self.monitor.ask_to_pause.remote(room)):
            return self._get_resize_decision(room)
        return NoopDecision()

    def _room(self) -> int:
        """For how many workers the nodes that answer have room."""
        resources, there = self._get_reserved_resources() or {}, _nodes_that_answer()
        return self._count_possible_workers({name: resources[name] for name in resources if name in there})

    def _room_beside(self, there: int) -> int:
        """The same, now that `there` workers have their places. The coordinator knows of trainings and of
        data, but not of what else is on the nodes, such as an endpoint."""
        free, needs = ray.available_resources(), self.scaling_config._resources_per_worker_not_none
        more = min(free.get(name, 0) // need for name, need in needs.items() if need)
        return self._whole(min(self._room(), there + int(more)))

    def _count_possible_workers(self, reserved_resources: Any) -> int:
        return self._whole(super()._count_possible_workers(reserved_resources))

    def _whole(self, workers: int) -> int:
        return workers - workers % self.multiple

    def _get_reserved_resources(self) -> Any:
        last, pause = self._latest_reserved_resources_query_time, self.GET_RESERVED_RESOURCES_INTERVAL_S
        if time.monotonic() - last >= pause:  # by itself the coordinator counts every 20 s
            self._autoscaling_coordinator.get_reserved_resources.remote(self._requester_id, recompute=True)
        return super()._get_reserved_resources()


def _nodes_that_answer() -> set[str]:
    """The ids of the nodes whose raylet can be reached. Ray takes one that was cut off for alive for some
    more heartbeats, and a group on it would be waited for until its start times out: going on after a node's
    loss took 85 s, and takes 24 s, on two busy cores."""
    nodes = [node for node in ray.nodes() if node["Alive"]]

    def answers(node: Mapping[str, Any]) -> bool:
        try:
            address = (node["NodeManagerAddress"], node["NodeManagerPort"])
            socket.create_connection(address, ANSWER_SECONDS).close()
        except OSError:
            return False
        return True

    with ThreadPoolExecutor(min(32, len(nodes))) as pool:
        return {node["NodeID"] for node, there in zip(nodes, pool.map(answers, nodes), strict=True) if there}
