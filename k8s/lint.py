"""Checks all that k8s/ renders, without a cluster: `make lint-k8s`.

Strict against the schemas of KubeRay and Kubernetes (a misspelt field is pruned or ignored there, silently),
and the rules of KubeRay's operator that its schemas don't hold,
every name resolves, every module that a cluster would import is there, and the groups hold what is asked of
them."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import json
import os
import re
import shlex
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import jsonschema
import kubernetes_validate
import typer
import yaml
from typer.exceptions import TyperException

from ingot.errors import IngotError
from ingot.pipelines.recipe import load_recipe
from ingot.services import capacity, cli
from ingot.services.kuberay import operator_faults
from ingot.services.kubernetes import kustomize

RENDERED = ("base", "overlays/cpu", "overlays/gpu")
KUBERNETES = ("1.32", "1.37")  # the oldest and the newest that are supported
KUBERAY = {"1.7.0": ".", "1.6.2": "v1.6.2"}  # version -> its folder below $KUBERAY_CRD_DIR
NEWEST = "1.7.0"
CLUSTERS = {"RayCluster": (), "RayJob": ("rayClusterSpec",), "RayService": ("rayClusterConfig",)}
IMAGE_RECIPES = "/home/ingot/recipes"  # where the images keep recipes/
_RUN: Any = typer.main.get_group(cli.app).commands["run"]
LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class Fault(NamedTuple):
    """What is wrong, and where."""

    file: str
    thing: str  # Kind/name
    field: str
    words: str

    def __str__(self) -> str:
        return f"{self.file}: {self.thing}: {self.field}: {self.words}"


def lint(
    tree: Path, readme: Path, recipes: Path, crds: Mapping[str, Path], parts: Sequence[str] = RENDERED
) -> list[Fault]:
    """The faults of the tree. `crds`: version of KubeRay -> the folder of its schemas."""
    return [*lint_text(tree, readme, crds, parts), *lint_work(tree, recipes, parts)]


def lint_text(tree: Path, readme: Path, crds: Mapping[str, Path], parts: Sequence[str]) -> list[Fault]:
    """What schemas and names tell."""
    by_hand = _made_by_hand(readme.read_text())

    def faults(document: dict[str, Any], documents: list[dict[str, Any]]) -> Iterator[tuple[str, str]]:
        if document["apiVersion"].startswith("ray.io/"):
            yield from _kuberay_schema(document, crds)
            yield from operator_faults(document)
            # the schemas of custom resources leave it to Kubernetes to describe metadata
            yield from _core_schema(
                {"apiVersion": "v1", "kind": "ConfigMap", "metadata": document["metadata"]}
            )
        else:
            yield from _core_schema(document)
        yield from _names(document, documents, by_hand)

    return _collect(tree, parts, faults)


def lint_work(tree: Path, recipes: Path, parts: Sequence[str]) -> list[Fault]:
    """What is wrong with the programs that would run, and whether the groups have room for them."""
    shipped = {path.name: load_recipe(path) for path in sorted(recipes.glob("*.yaml"))}
    too_large = set(shipped)

    def faults(document: dict[str, Any], _: list[dict[str, Any]]) -> Iterator[tuple[str, str]]:
        kind, spec = document["kind"], document["spec"] if document["kind"] in CLUSTERS else {}
        if not spec:
            return
        for field in CLUSTERS[kind]:
            spec = spec[field]
        try:
            groups = capacity.groups_of(document["metadata"], spec)
        except IngotError as error:
            yield _path(["spec", *CLUSTERS[kind]]), str(error)
            return
        if kind == "RayJob":
            entrypoint = document["spec"]["entrypoint"]
            yield from (("spec.entrypoint", words) for words in _entrypoint(entrypoint, groups, recipes))
            for name in list(too_large):
                if not capacity.misfits(capacity.recipe_asks(shipped[name]), groups):
                    too_large.remove(name)
        if kind == "RayService":
            config = document["spec"]["serveConfigV2"]
            yield from (("spec.serveConfigV2", words) for words in _serve_config(config, groups))

    found = _collect(tree, parts, faults)
    words = "its trainings fit the groups of no overlay"
    return [*found, *(Fault(f"recipes/{name}", "recipe", "workers", words) for name in sorted(too_large))]


def _collect(
    tree: Path,
    parts: Sequence[str],
    faults: Callable[[dict[str, Any], list[dict[str, Any]]], Iterator[tuple[str, str]]],
) -> list[Fault]:
    """The faults of every document of every part, each told once, with the base's file."""
    files = _files(tree)
    found: dict[Fault, None] = {}
    for part in parts:
        try:
            documents = kustomize(tree / part)
        except IngotError as error:
            found[Fault(f"{tree.name}/{part}/kustomization.yaml", part, "kustomize", str(error))] = None
            continue
        for document in documents:
            thing = f"{document['kind']}/{document['metadata']['name']}"
            file = files.get(thing, f"{tree.name}/{part}/kustomization.yaml")
            for field, words in faults(document, documents):
                found[Fault(file, thing, field, words)] = None
    return list(found)


# --- schemas


def _kuberay_schema(document: dict[str, Any], crds: Mapping[str, Path]) -> Iterator[tuple[str, str]]:
    for version, folder in crds.items():
        for error in _validator(folder, document["kind"]).iter_errors(document):
            unknown = error.validator == "additionalProperties"
            if unknown and version != NEWEST:
                continue  # a field that came later; the newest tells what is misspelt
            names = sorted(set(error.instance) - set(error.schema["properties"])) if unknown else [None]
            for name in names:
                words = (
                    f"KubeRay {version} has no such field" if name else f"KubeRay {version}: {error.message}"
                )
                yield _path([*error.absolute_path, *([name] if name else [])]), words


@cache
def _validator(folder: Path, kind: str) -> Any:
    text = (folder / f"ray.io_{kind.lower()}s.yaml").read_text()
    # Every item of spec.versions begins so. Each takes a second to read, and one is of interest.
    versions = re.split("^  - ", text, flags=re.MULTILINE)[1:]
    [wanted] = [item for item in versions if re.search("^    name: v1$", item, re.MULTILINE)]
    schema = yaml.load(f"    {wanted}", Loader=LOADER)["schema"]["openAPIV3Schema"]
    return jsonschema.Draft202012Validator(_strict(schema))


def _strict(schema: Any) -> Any:
    """A structural schema of Kubernetes in JSON Schema, where a field that is not described is an error."""
    if isinstance(schema, list):
        return [_strict(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    if schema.get("x-kubernetes-int-or-string"):
        return {"type": ["integer", "string"]}
    properties = schema.get("properties", {})
    strict = {key: _strict(value) for key, value in schema.items() if key not in ("format", "properties")}
    if properties:
        strict["properties"] = {name: _strict(value) for name, value in properties.items()}
        if not schema.get("x-kubernetes-preserve-unknown-fields"):
            strict["additionalProperties"] = False
    return strict


def _core_schema(document: dict[str, Any]) -> Iterator[tuple[str, str]]:
    for version in KUBERNETES:
        if found := _core_fault(json.dumps(document, sort_keys=True), version):
            yield found


@cache  # most documents are the same in every overlay
def _core_fault(document: str, version: str) -> tuple[str, str] | None:
    try:
        kubernetes_validate.validate(json.loads(document), version, strict=True)
    except kubernetes_validate.ValidationError as error:
        return _path(error.path), f"Kubernetes {version}: {error.message}"
    except kubernetes_validate.SchemaNotFoundError as error:
        return "kind", error.message
    return None


# --- names


def _made_by_hand(readme: str) -> set[tuple[str, str, str]]:
    """(kind, name, key) of the secrets and config maps that the page tells to make."""
    joined = readme.replace("\\\n", " ")
    made = re.findall(r"create (?:secret generic|(configmap)) ([\w.-]+)((?: +--from-literal=\S+)*)", joined)
    return {
        ("ConfigMap" if kind else "Secret", name, key)
        for kind, name, rest in made
        for key in ["", *re.findall(r"--from-literal=(\w+)=", rest)]
    }


def _names(
    document: dict[str, Any], documents: list[dict[str, Any]], made_by_hand: set[tuple[str, str, str]]
) -> Iterator[tuple[str, str]]:
    there = {(kind, name) for kind, name, _ in made_by_hand}
    there |= {(other["kind"], other["metadata"]["name"]) for other in documents}
    keys = {(kind, name, key) for kind, name, key in made_by_hand if key} | {
        (other["kind"], other["metadata"]["name"], key)
        for other in documents
        for key in other.get("data", {})
    }
    for place, kind, name, key in _references(document, ()):
        if (kind, name) not in there:
            yield _path(place), f"there is no {kind} {name}"
        elif key and (kind, name, key) not in keys:
            yield _path(place), f"the {kind} {name} has no key {key}"


def _references(node: Any, place: tuple[Any, ...]) -> Iterator[tuple[tuple[Any, ...], str, str, str]]:
    """(place, kind, name, key) of every object that is named below a node."""
    if isinstance(node, list):
        for index, item in enumerate(node):
            yield from _references(item, (*place, index))
    if not isinstance(node, dict):
        return
    for field, value in node.items():
        here = (*place, field)
        if field == "serviceAccountName":
            yield here, "ServiceAccount", value, ""
        elif field == "authOptions" and "secretName" in value:
            yield (*here, "secretName"), "Secret", value["secretName"], "auth_token"
        elif field in ("secretKeyRef", "configMapKeyRef"):
            yield here, "Secret" if field == "secretKeyRef" else "ConfigMap", value["name"], value["key"]
        elif field in ("secretRef", "configMapRef"):
            yield here, "Secret" if field == "secretRef" else "ConfigMap", value["name"], ""
        elif field == "secret" and isinstance(value, dict) and "secretName" in value:
            yield here, "Secret", value["secretName"], ""
        elif field == "configMap" and isinstance(value, dict) and "name" in value:
            yield here, "ConfigMap", value["name"], ""
        elif field == "persistentVolumeClaim" and isinstance(value, dict):
            yield here, "PersistentVolumeClaim", value["claimName"], ""
        elif field == "imagePullSecrets":
            yield from (((*here, index), "Secret", item["name"], "") for index, item in enumerate(value))
        else:
            yield from _references(value, here)


# --- what runs


def _entrypoint(entrypoint: str, groups: list[capacity.Group], recipes: Path) -> Iterator[str]:
    words = shlex.split(entrypoint)
    if words[:2] != ["python", "-m"]:
        yield f"not python -m MODULE …: {entrypoint}"
        return
    with contextlib.suppress(ModuleNotFoundError):  # of a package above it
        if importlib.util.find_spec(words[2]) is not None:
            importlib.import_module(words[2])
            yield from _recipe(words[3:], groups, recipes)
            return
    yield f"no module {words[2]}"


def _recipe(words: list[str], groups: list[capacity.Group], recipes: Path) -> Iterator[str]:
    """Whether the command line takes `run RECIPE --set A.B=C`, and the groups hold what it asks for."""
    if words[:1] != ["run"]:
        yield f"not run RECIPE …: {shlex.join(words)}"
        return
    try:
        asked = _RUN.make_context("run", words[1:]).params
    except TyperException as error:
        yield error.format_message()
        return
    path: Path = asked["recipe"]
    if str(path.parent) != IMAGE_RECIPES:
        yield f"{path}: the images keep recipes in {IMAGE_RECIPES}"
        return
    try:
        recipe = load_recipe(recipes / path.name, asked["setting"] or [])
        yield from capacity.misfits(capacity.recipe_asks(recipe, asked["until"]), groups)
    except IngotError as error:
        yield str(error)


def _serve_config(config: str, groups: list[capacity.Group]) -> Iterator[str]:
    from pydantic import ValidationError
    from ray.serve.schema import ServeDeploySchema

    try:
        applications = ServeDeploySchema.model_validate(yaml.safe_load(config)).applications
    except (yaml.YAMLError, ValidationError) as error:
        yield f"Ray Serve: {error}"
        return
    for application in applications:
        module, _, name = application.import_path.replace(":", ".").rpartition(".")
        try:
            imported = importlib.import_module(module)
        except ModuleNotFoundError as error:
            yield f"{application.name}: import_path {application.import_path}: {error}"
            continue
        if not hasattr(imported, name):
            yield f"{application.name}: import_path {application.import_path}: {module} has no {name}"
            continue
        try:
            options = imported.parse(application.args).options
        except IngotError as error:
            yield f"{application.name}: {error}"
        else:
            asks = capacity.endpoint_asks(options)
            yield from (f"{application.name}: {words}" for words in capacity.misfits(asks, groups))


# --- the command


def _files(tree: Path) -> dict[str, str]:
    """Kind/name -> the file of the base that describes it."""
    described = {}
    for path in sorted((tree / "base").glob("*.yaml")):
        for document in yaml.load_all(path.read_text(), Loader=LOADER):
            if document and "metadata" in document:
                described[f"{document['kind']}/{document['metadata']['name']}"] = (
                    f"{tree.name}/{path.relative_to(tree)}"
                )
    return described


def _path(place: Any) -> str:
    return ".".join(map(str, place)) or "."


def main() -> int:
    tree = Path(__file__).parent
    root = tree.parent
    if shutil.which("kubectl") is None:
        print("k8s: NOT CHECKED: kubectl is not installed, so nothing was rendered")
        return 0
    given = os.environ.get("KUBERAY_CRD_DIR", "")
    crds = {version: Path(given, folder) for version, folder in KUBERAY.items() if given}
    crds = {version: folder for version, folder in crds.items() if any(folder.glob("ray.io_*.yaml"))}
    if missing := sorted(set(KUBERAY) - set(crds)):
        without = f"no schemas below {given}" if given else "KUBERAY_CRD_DIR is not set"
        print(f"k8s: NOT CHECKED against KubeRay {' and '.join(missing)}: {without}")
    with ProcessPoolExecutor(
        1, get_context("fork")
    ) as other:  # reading schemas takes as long as importing Ray
        text = other.submit(lint_text, tree, root / "docs" / "kubernetes.md", crds, RENDERED)
        work = lint_work(tree, root / "recipes", RENDERED)
        faults = list(dict.fromkeys([*text.result(), *work]))
    for fault in faults:
        print(fault)
    if not faults:
        versions = [
            *(f"KubeRay {version}" for version in crds),
            *(f"Kubernetes {each}" for each in KUBERNETES),
        ]
        print(f"k8s: {', '.join(RENDERED)}: no faults; checked against {', '.join(versions)}")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
