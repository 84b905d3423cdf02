"""How a model version is served, and what a replica must know of it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from ingot.pipelines.registry import ModelVersion
from ingot.pipelines.store import Store

APPLICATION = "ingot"


@dataclass(frozen=True)
class ServeOptions:
    """What may be chosen for an endpoint; nothing of it changes what greedy decoding answers."""

    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012

    replicas: int = 1
    cpus: int = 1  # of each replica: what Ray reserves, and vLLM's threads where there is no GPU
    gpus: int = 0  # of each replica: 0 computes in float32 on the CPU, more split every layer over that many
    context: int | None = None  # tokens of prompt and answer together; by default what the model was made for
    sequences: int = 32  # requests that a replica computes at once; more wait their turn
    queue: int = 1024  # requests that may wait; more are answered 429


@dataclass(frozen=True)
class ServedModel:
    """What travels to a replica: plain JSON, so that a Serve configuration file can carry it too."""

    store: str
    checkpoint: str  # the artifact's key
    weights: str  # its digest
    model: str  # name@version
    aliases: tuple[str, ...]
    created: int  # seconds since the epoch
    options: ServeOptions

    @property
    def names(self) -> tuple[str, ...]:
        """What a request may call the model; the first stands in every answer."""
        return (self.model, *self.aliases)

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "aliases": list(self.aliases)}

    @staticmethod
    def of(store: Store, version: ModelVersion, options: ServeOptions) -> ServedModel:
        """A version of the registry, served under its own name and its model's."""
        return ServedModel(
            store=store.uri,
            checkpoint=version.checkpoint,
            weights=version.weights,
            model=version.id,
            aliases=(version.name,),
            created=int(version.at),
            options=options,
        )

    @staticmethod
    def from_json(body: dict[str, Any]) -> ServedModel:
        options = ServeOptions(**body.get("options", {}))
        return ServedModel(**{**body, "aliases": tuple(body["aliases"]), "options": options})
