"""What a Serve configuration names, a RayService's for one: `import_path: ingot.services.serve.app:build`. It
gives the application that `ingot serve` deploys."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, ValidationError

from ingot.errors import UsageError
from ingot.pipelines.registry import resolve
from ingot.pipelines.store import open_store
from ingot.services.serve.replica import application
from ingot.services.serve.settings import ServedModel, ServeOptions

if TYPE_CHECKING:
    from ray import serve


class Arguments(BaseModel):
    """The `args` of an application in a Serve configuration."""

    model_config = ConfigDict(extra="forbid")

    model: str  # NAME for its newest version, or NAME@VERSION
    store: str | None = None  # by default INGOT_STORE of the machine that builds the application
    options: ServeOptions = ServeOptions()


def build(args: dict[str, Any]) -> serve.Application:
    """The application of a model in the registry. The version is chosen here, once: replicas that start later
    serve the same weights. Raises UsageError for wrong arguments and for a model that is not there."""
    arguments = parse(args)
    uri = arguments.store or os.environ.get("INGOT_STORE")
    if not uri:
        raise UsageError("args.store: no store; name one there, or in INGOT_STORE of every pod")
    store = open_store(uri)
    version = resolve(store, arguments.model)
    return application(ServedModel.of(store, version, arguments.options).to_json())


def parse(args: dict[str, Any]) -> Arguments:
    """The arguments, checked. Raises UsageError with every error."""
    try:
        return Arguments.model_validate(args)
    except ValidationError as error:
        wrong = [f"args.{'.'.join(map(str, detail['loc']))}: {detail['msg']}" for detail in error.errors()]
        raise UsageError("\n".join(wrong)) from None
