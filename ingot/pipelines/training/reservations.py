"""The requests for room that trainings leave with Ray's autoscaling coordinator.

The coordinator is an actor of the cluster that outlives every driver. It shares the nodes out among the
requests it knows and forgets one that its training did not cancel only after 180 s, so that whoever kills a
training and starts it again would wait for that long. Here each training notes in the cluster's key-value
store which actor its request belongs to, and the next one cancels the requests of actors that are gone.

The key-value store, the table of actors and what is free on each node are private parts of Ray: this file
alone imports them."""

from __future__ import annotations

import logging
from typing import Any

import ray
from ray._private import state
from ray.exceptions import RayError
from ray.experimental import internal_kv

_NAMESPACE = "ingot-training-requests"
_ANSWER_SECONDS = 5.0  # that the coordinator has to answer

logger = logging.getLogger(__name__)


def note_request(requester: str) -> None:
    """Notes that the request belongs to the actor that calls this; outside an actor does nothing."""
    actor = ray.get_runtime_context().get_actor_id()
    if actor is not None:
        internal_kv._internal_kv_put(requester, actor, namespace=_NAMESPACE)


def cancel_abandoned_requests(coordinator: Any) -> None:
    """Cancels every noted request whose actor is dead. What can't be cancelled now is left for the next
    call."""
    for key in internal_kv._internal_kv_list("", namespace=_NAMESPACE):
        actor = internal_kv._internal_kv_get(key, namespace=_NAMESPACE)
        if actor is None or not _is_dead(actor.decode()):
            continue
        try:
            ray.get(coordinator.cancel_request.remote(requester_id=key.decode()), timeout=_ANSWER_SECONDS)
        except RayError:
            logger.warning("could not cancel the request %s", key.decode(), exc_info=True)
            continue
        internal_kv._internal_kv_del(key, namespace=_NAMESPACE)


def _is_dead(actor: str) -> bool:
    """Whether the actor has ended for good, or so long ago that Ray has forgotten it."""
    found: dict[str, Any] = state.actors(actor_id=actor)
    return found.get("State", "DEAD") == "DEAD"


def free_on_each_node() -> dict[str, dict[str, float]]:
    """What no task, actor or placement group holds, by the node's id."""
    free: dict[str, dict[str, float]] = state.available_resources_per_node()
    return free
