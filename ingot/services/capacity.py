"""Whether the groups of a RayCluster, grown as far as they may, hold what a recipe or an endpoint asks for.

A pod's CPUs and GPUs are read by the function that Ray's own autoscaler reads them with, so that what is
promised here is what the autoscaler will see. It is a private one: this file alone imports it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ingot.errors import IngotError
from ingot.pipelines.pipeline import TRAINING, stages_of
from ingot.pipelines.recipe import Recipe
from ingot.services.serve.settings import ServeOptions


@dataclass(frozen=True)
class Ask:
    """What is to be placed at once: `count` equal pieces."""

    field: str  # the setting that says how many
    count: int
    cpus: float  # of each
    gpus: float = 0

    def __str__(self) -> str:
        each = f"{self.cpus:g} CPU" + (f" and {self.gpus:g} GPU" if self.gpus else "")
        return f"{self.count} × {each}"


@dataclass(frozen=True)
class Group:
    """The pods of a group."""

    name: str
    most: int  # pods
    cpus: float  # of each
    gpus: float

    def room(self, ask: Ask) -> int:
        """The pieces of `ask` that fit."""
        each = self.cpus // ask.cpus if ask.cpus else float("inf")
        if ask.gpus:
            each = min(each, self.gpus // ask.gpus)
        return ask.count if each == float("inf") else self.most * int(each)

    def __str__(self) -> str:
        return f"{self.name}: {self.most} × {self.cpus:g} CPU" + (
            f" and {self.gpus:g} GPU" if self.gpus else ""
        )


def recipe_asks(recipe: Recipe, until: str | None = None) -> list[Ask]:
    """What the stages of a recipe ask for: one CPU for a task on data, and the least workers of each
    training."""
    asks = [Ask("corpus", 1, cpus=1)]  # tasks queue for what there is; one must fit
    for stage in stages_of(recipe, until):
        if stage in TRAINING:
            section = getattr(recipe, stage)
            workers = section.least_workers
            asks.append(Ask(f"{stage}.workers", workers, section.cpus_per_worker, section.gpus_per_worker))
    return asks


def endpoint_asks(options: ServeOptions) -> list[Ask]:
    return [Ask("args.options.replicas", options.replicas, options.cpus, options.gpus)]


def groups_of(metadata: Mapping[str, Any], cluster: Mapping[str, Any]) -> list[Group]:
    """The groups of a RayCluster's specification, as Ray's autoscaler reads them. Raises IngotError for one
    that it can't read."""
    from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr

    named = {"name": metadata["name"], "namespace": metadata.get("namespace", "default")}
    try:
        config = _derive_autoscaling_config_from_ray_cr({"metadata": named, "spec": cluster})
    except Exception as error:  # as it comes: a KeyError for a missing field, a ValueError for a wrong one
        raise IngotError(f"Ray's autoscaler can't read it: {type(error).__name__}: {error}") from None
    head = config["head_node_type"]
    return [
        Group(
            name,
            1 if name == head else node["max_workers"],
            node["resources"].get("CPU", 0),
            node["resources"].get("GPU", 0),
        )
        for name, node in config["available_node_types"].items()
    ]


def misfits(asks: list[Ask], groups: list[Group]) -> list[str]:
    """A message for each that fits into no group."""
    there = "; ".join(map(str, groups))
    return [
        f"{ask.field}: {ask} fit no group as far as it may grow ({there}); ask for less, or raise "
        "maxReplicas or the resources of a group"
        for ask in asks
        if not any(group.room(ask) >= ask.count for group in groups)
    ]
