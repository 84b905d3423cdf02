"""The publish stage: a version of a model in the registry, pointing at the last checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from ingot.pipelines.artifact import Artifact, put_json
from ingot.pipelines.registry import publish
from ingot.pipelines.sections import Publish
from ingot.pipelines.units import Workspace

if TYPE_CHECKING:
    from ingot.pipelines.pipeline import Outcome

VERSION = 1


def run(workspace: Workspace, section: Publish, inputs: Mapping[str, Artifact]) -> Outcome:
    from ingot.pipelines.pipeline import Outcome

    checkpoint, evaluation = inputs["checkpoint"], inputs["evaluate"]
    workspace.refuse_if_fenced()
    version = publish(workspace.store, section.model, checkpoint, evaluation, workspace.run_name)
    card = {"model": version.name, "version": version.version, "weights": version.weights}
    return Outcome({"model.json": put_json(workspace.store, card)}, card)
