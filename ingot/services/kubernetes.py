"""A run on Kubernetes: the RayJob that `ingot submit RECIPE --to kubernetes` prints or applies.

It is the RayJob of an overlay in `k8s/`, as `kubectl kustomize` renders it, with the recipe in a ConfigMap
that the head's pod reads: what is deployed by hand and what is submitted are described in one place."""

from __future__ import annotations

import hashlib
import json
import re
import shlex
import shutil
import subprocess
import sysconfig
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

import ingot
from ingot.errors import IngotError, UsageError
from ingot.pipelines.recipe import Recipe, load_recipe
from ingot.pipelines.sections import Files
from ingot.services.capacity import groups_of, misfits, recipe_asks
from ingot.services.kuberay import operator_faults

MOUNTED = "/etc/ingot"
RECIPE = "recipe.yaml"
ENDED = ("Complete", "Failed", "ValidationFailed")  # the operator never looks at these again
LONGEST_NAME = 47  # of a RayJob: the operator adds letters for its cluster


def render(
    recipe_path: str | Path,
    name: str | None = None,
    store: str | None = None,
    image: str | None = None,
    *,
    overlay: str = "cpu",
    settings: Sequence[str] = (),
    until: str | None = None,
    attempt: int = 1,
) -> str:
    """The ConfigMap and the RayJob of one attempt at a run, in YAML. `overlay` is one of k8s/overlays, or a
    folder of one's own that brings a RayJob; without `store` the pods' INGOT_STORE is meant, without `image`
    the overlay's. Raises UsageError for a wrong recipe, one that no group can hold, a store or a source on a
    disk, or an overlay that KubeRay would refuse; IngotError without kubectl."""
    recipe = load_recipe(recipe_path, [*settings, *([f"name={json.dumps(name)}"] if name else [])])
    if store is not None and not store.startswith("s3://"):
        raise UsageError(
            f"store {store}: a cluster's pods share no disk; name one with --store s3://bucket/prefix"
        )
    if local := _local_places(recipe, store):
        raise UsageError("\n".join(f"{recipe_path}: {line}" for line in local))
    job = _job_of(overlay)
    spec, cluster = job["spec"], job["spec"]["rayClusterSpec"]
    if wrong := misfits(recipe_asks(recipe, until), groups_of(job["metadata"], cluster)):
        raise UsageError("\n".join(f"{recipe_path}: {line}" for line in wrong))

    own = resource_name(recipe.name, attempt)
    labels = {**job["metadata"].get("labels", {}), "ingot/run": resource_name(recipe.name)}
    metadata = {"name": own, "namespace": job["metadata"].get("namespace", "default"), "labels": labels}
    words = ["python", "-m", "ingot.services.cli", "run", f"{MOUNTED}/{RECIPE}", "--keep-output"]
    words += ["--name", recipe.name]
    for option, values in (("--store", [store]), ("--until", [until]), ("--set", settings)):
        words += [word for value in values if value is not None for word in (option, value)]
    spec["entrypoint"] = shlex.join(words)
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    for template in (group["template"] for group in groups):
        template.setdefault("metadata", {}).setdefault("labels", {})["ingot/of"] = own
        if image is not None:
            template["spec"]["containers"][0]["image"] = image
    head = groups[0]["template"]["spec"]  # where the run's driver is
    head.setdefault("volumes", []).append({"name": "recipe", "configMap": {"name": own}})
    mounts = head["containers"][0].setdefault("volumeMounts", [])
    mounts.append({"name": "recipe", "mountPath": MOUNTED, "readOnly": True})
    text = Path(recipe_path).read_text(encoding="utf-8")
    config = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": {RECIPE: text}}
    submitted = {**job, "metadata": metadata}
    if broken := list(operator_faults(submitted)):
        lines = (f"overlay {overlay}: RayJob: {field}: {message}" for field, message in broken)
        raise UsageError("\n".join(lines))
    documents = [config, submitted]
    return yaml.dump_all(documents, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=10_000)


@dataclass(frozen=True)
class Submitted:
    """An attempt at a run on Kubernetes."""

    name: str  # of the RayJob
    namespace: str
    created: bool  # now; else it was under way already


def apply(
    recipe_path: str | Path,
    name: str | None = None,
    store: str | None = None,
    image: str | None = None,
    *,
    context: str | None = None,
    overlay: str = "cpu",
    settings: Sequence[str] = (),
    until: str | None = None,
) -> Submitted:
    """Submits what `render` gives to the cluster of the kubeconfig's context. An attempt that is under way is
    left alone and returned; after one that has ended comes the next. Raises UsageError as `render` does and
    without a kubeconfig, IngotError where the cluster can't be reached or refuses."""
    from kubernetes import client, config
    from urllib3.exceptions import HTTPError

    def documents(attempt: int) -> Iterable[dict[str, Any]]:
        choices: dict[str, Any] = {"overlay": overlay, "settings": settings, "until": until}
        return yaml.safe_load_all(render(recipe_path, name, store, image, **choices, attempt=attempt))

    first, _ = documents(1)
    namespace, run = first["metadata"]["namespace"], first["metadata"]["labels"]["ingot/run"]
    try:
        connection = config.new_client_from_config(context=context)
    except config.ConfigException as error:
        raise UsageError(f"kubeconfig: {error}; name one with KUBECONFIG, or use --render") from None
    try:
        return _submit(connection, namespace, run, documents)
    except client.ApiException as error:
        mend = f"look with: kubectl auth can-i create rayjobs.ray.io,configmaps --namespace {namespace}"
        if error.status == 404:
            mend = "install KubeRay, and apply the overlay's part `access` first (docs/kubernetes.md)"
        raise IngotError(
            f"Kubernetes, namespace {namespace}: {error.status} {error.reason}; {mend}"
        ) from None
    except HTTPError as error:
        host = connection.configuration.host
        raise IngotError(f"Kubernetes at {host}: {error}; check the kubeconfig's context") from None


def _submit(
    connection: Any, namespace: str, run: str, documents: Callable[[int], Iterable[dict[str, Any]]]
) -> Submitted:
    from kubernetes import client

    jobs, core = client.CustomObjectsApi(connection), client.CoreV1Api(connection)
    place = {"group": "ray.io", "version": "v1", "namespace": namespace, "plural": "rayjobs"}
    there = jobs.list_namespaced_custom_object(**place, label_selector=f"ingot/run={run}")["items"]
    newest: Any = max(there, key=_attempt, default=None)
    attempt = _attempt(newest) if newest else 1
    created = newest is None
    if newest and newest.get("status", {}).get("jobDeploymentStatus") in ENDED:
        attempt, created = attempt + 1, True
    recipe, job = documents(attempt)
    if created:
        try:
            newest = jobs.create_namespaced_custom_object(**place, body=job)
        except client.ApiException as error:
            if error.status != 409:
                raise
            created = False  # another submission was first
            newest = jobs.get_namespaced_custom_object(**place, name=job["metadata"]["name"])
    # The recipe comes after its RayJob, to go with it, and from every submission: one may have died here.
    owner = {field: newest["metadata"][field] for field in ("name", "uid")}
    recipe["metadata"]["ownerReferences"] = [{"apiVersion": "ray.io/v1", "kind": "RayJob", **owner}]
    try:
        core.create_namespaced_config_map(namespace, recipe)
    except client.ApiException as error:
        if error.status != 409:
            if created:  # without its recipe it would hold machines and wait for ever
                _withdraw(jobs, place, owner["name"])
            raise
    return Submitted(owner["name"], namespace, created)


def _withdraw(jobs: Any, place: dict[str, str], name: str) -> None:
    """Deletes a RayJob that was just created. Raises IngotError where that is refused too."""
    from kubernetes import client

    try:
        jobs.delete_namespaced_custom_object(**place, name=name)
    except client.ApiException as error:
        if error.status != 404:
            namespace = place["namespace"]
            raise IngotError(
                f"Kubernetes, namespace {namespace}: RayJob {name} was created, but its ConfigMap with the "
                f"recipe was refused, and so was the deletion of the RayJob ({error.status} {error.reason}); "
                f"delete it with: kubectl delete rayjob {name} --namespace {namespace}"
            ) from None


def _local_places(recipe: Recipe, store: str | None) -> list[str]:
    """A message for each place of the recipe on the disk of the machine that submits. Pods have their own
    disks. Without a store in the recipe or the options the pods' INGOT_STORE is used."""
    wrong = [
        f"corpus.sources.{index}.path: {source.path}: the cluster's pods don't see this machine's disk; copy "
        "the files to a bucket and name it as s3://bucket/prefix"
        for index, source in enumerate(recipe.corpus.sources)
        if isinstance(source, Files) and not source.path.startswith("s3://")
    ]
    if store is None and "store" in recipe.model_fields_set and not recipe.store.startswith("s3://"):
        wrong.append(
            f"store: {recipe.store}: a cluster's pods share no disk; name one with --store s3://bucket/prefix"
        )
    return wrong


def _attempt(job: dict[str, Any]) -> int:
    return int(job["metadata"]["name"].rpartition("-")[2])


def resource_name(run: str, attempt: int | None = None) -> str:
    """RUN, or RUN-ATTEMPT, as Kubernetes takes names: where letters must go, some of a hash come."""
    ending = "" if attempt is None else f"-{attempt}"
    plain = re.sub(r"[^a-z0-9-]", "-", run)
    plain = plain if plain[0].isalpha() else f"run-{plain}"
    longest = LONGEST_NAME - 4  # the same for every attempt below a thousand
    if plain != run or len(plain) > longest or plain.endswith("-"):
        mark = hashlib.sha256(run.encode()).hexdigest()[:8]
        plain = f"{plain[: longest - 9].rstrip('-')}-{mark}"
    return plain + ending


def manifests() -> Path:
    """The folder k8s/: beside the package in a checkout, installed below the environment's share/."""
    checkout = Path(ingot.__file__).parents[1] / "k8s"
    return checkout if checkout.is_dir() else Path(sysconfig.get_path("data"), "share", "ingot", "k8s")


def kustomize(folder: Path) -> list[dict[str, Any]]:
    """The documents of a kustomization. Raises IngotError without kubectl or where it refuses."""
    kubectl = shutil.which("kubectl")
    if kubectl is None:
        raise IngotError(
            "kubectl is not installed, and k8s/ is rendered by it; install kubectl 1.32 or newer"
        )
    done = subprocess.run([kubectl, "kustomize", str(folder)], capture_output=True, text=True)
    if done.returncode:
        logged = re.search('err="(.*)"$', done.stderr.strip())
        raise IngotError(f"{folder}: kubectl kustomize: {logged[1] if logged else done.stderr.strip()}")
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    return [document for document in yaml.load_all(done.stdout, Loader=loader) if document]


class _Dumper(yaml.SafeDumper):
    """Text of several lines as it was written."""


_Dumper.add_representer(
    str,
    lambda dumper, text: dumper.represent_scalar(
        "tag:yaml.org,2002:str", text, style="|" if "\n" in text else None
    ),
)


def _job_of(overlay: str) -> dict[str, Any]:
    shipped = manifests() / "overlays" / overlay
    folder = shipped if shipped.is_dir() else Path(overlay)
    if not (folder / "kustomization.yaml").is_file():
        there = ", ".join(sorted(path.name for path in (manifests() / "overlays").glob("*")))
        raise UsageError(f"overlay {overlay}: neither one of {there} nor a folder with a kustomization.yaml")
    jobs = [document for document in kustomize(folder) if document["kind"] == "RayJob"]
    if len(jobs) != 1:
        raise UsageError(f"{folder}: renders {len(jobs)} RayJobs; a run is made from exactly one")
    return jobs[0]
