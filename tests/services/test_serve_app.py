"""What a Serve configuration names: the application of a registry's model, built without Ray or vLLM."""

from __future__ import annotations

from pathlib import Path

import pytest
from ray.serve._private.api import call_user_app_builder_with_args_if_necessary
from ray.serve._private.build_app import build_app
from ray.serve.schema import ServeDeploySchema

from ingot.errors import UsageError
from ingot.pipelines.artifact import commit, put_file
from ingot.pipelines.registry import publish, resolve
from ingot.pipelines.store import LocalStore
from ingot.services.serve.app import build
from ingot.services.serve.replica import application
from ingot.services.serve.settings import ServedModel, ServeOptions


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    """Two versions of one model."""
    store = LocalStore(str(tmp_path))
    for name in ("a", "b"):
        files = {"model.safetensors": put_file(store, name.encode())}
        checkpoint = commit(store, f"artifacts/sft/{name}", "sft", name, files, {}, {})
        publish(store, "tiny", checkpoint, None, "run")
    return store


def deployment(app):
    [built] = build_app(app, name="ingot").deployments
    return built


def test_a_serve_configuration_builds_what_ingot_serve_deploys(store):
    config = ServeDeploySchema.model_validate(
        {
            "applications": [
                {
                    "name": "ingot",
                    "route_prefix": "/",
                    "import_path": "ingot.services.serve.app:build",
                    "args": {"store": store.uri, "model": "tiny", "options": {"cpus": 2, "replicas": 3}},
                }
            ]
        }
    )
    app = call_user_app_builder_with_args_if_necessary(build, config.applications[0].args)
    ours = deployment(app)
    served = ServedModel.of(store, resolve(store, "tiny"), ServeOptions(cpus=2, replicas=3))
    theirs = deployment(application(served.to_json()))
    assert ours.init_args == theirs.init_args == (served.to_json(),)
    assert served.names == ("tiny@2", "tiny")
    assert ours._deployment_config == theirs._deployment_config
    assert ours.ray_actor_options == theirs.ray_actor_options
    assert ours.ray_actor_options["num_cpus"] == 2
    assert ours.num_replicas == 3


def test_a_version_may_be_named_and_the_store_comes_from_the_environment(store, monkeypatch):
    with pytest.raises(UsageError, match=r"args\.store: no store; name one there, or in INGOT_STORE"):
        build({"model": "tiny@1"})
    monkeypatch.setenv("INGOT_STORE", store.uri)
    [body] = deployment(build({"model": "tiny@1"})).init_args
    assert (body["model"], body["store"]) == ("tiny@1", store.uri)
    assert ServedModel.from_json(body).options == ServeOptions()


@pytest.mark.parametrize(
    ("args", "place"),
    [
        ({"modle": "tiny"}, r"args\.model: Field required\nargs\.modle: Extra inputs"),
        ({"model": "tiny", "options": {"gpu": 1}}, r"args\.options\.gpu: Unexpected"),
        ({"model": "tiny", "options": {"cpus": "many"}}, r"args\.options\.cpus: .* valid integer"),
        ({"model": "none"}, "no model none; there are: tiny@1, tiny@2"),
    ],
)
def test_wrong_arguments_are_told_before_anything_starts(store, monkeypatch, args, place):
    monkeypatch.setenv("INGOT_STORE", store.uri)
    with pytest.raises(UsageError, match=place):
        build(args)
