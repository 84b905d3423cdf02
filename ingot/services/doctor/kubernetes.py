"""Kubernetes: whether `ingot submit --to kubernetes` can create a RayJob with the kubeconfig's context. Each
question is one that any user may ask; nothing is created."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from ingot.services.doctor.finding import Finding, finding

ANSWER_SECONDS = 3  # for each question
NAMESPACE = "ingot"  # of k8s/base
NEEDED = (("ray.io", "rayjobs", "list"), ("ray.io", "rayjobs", "create"), ("", "configmaps", "create"))
ELSEWHERE = "or name another kubeconfig with KUBECONFIG"


def examine() -> Iterator[Finding]:
    location = os.environ.get("KUBECONFIG") or "~/.kube/config"
    if not any(Path(part).expanduser().is_file() for part in location.split(os.pathsep) if part):
        said = f"no kubeconfig at {location}: ingot submit --to kubernetes can print a RayJob (--render) only"
        mend = "check KUBECONFIG, or unset it"
        yield finding("Kubernetes", not os.environ.get("KUBECONFIG"), said, mend)
        return
    kubectl = shutil.which("kubectl")
    mend = "install kubectl 1.32 or newer: what is submitted is rendered by it"
    yield finding("kubectl", kubectl is not None, kubectl or "not installed", mend)
    yield _context(location)


def _context(location: str) -> Finding:
    from kubernetes import client, config
    from urllib3.exceptions import HTTPError

    settings = client.Configuration()
    settings.retries = 0  # not False: an error of TLS then hits a bug of the client's
    try:
        _, current = config.list_kube_config_contexts(location)
        config.load_kube_config(location, client_configuration=settings)
    except (config.ConfigException, yaml.YAMLError):
        mend = f"choose one with: kubectl config use-context, {ELSEWHERE}"
        return Finding("Kubernetes", False, f"{location}: its current context is none, or not whole", mend)
    connection = client.ApiClient(settings)
    where = f"context {current['name']} at {settings.host}"
    try:
        version = client.VersionApi(connection).get_code(_request_timeout=ANSWER_SECONDS).git_version
        wrong = _wrong(connection)
    except client.ApiException as error:
        said = f"{where}: {error.status} {error.reason}"
        return Finding("Kubernetes", False, said, f"log in again, choose another context, {ELSEWHERE}")
    except HTTPError as error:
        said = f"{where}: no answer ({_cause(error)})"
        return Finding("Kubernetes", False, said, f"start it, choose another context, {ELSEWHERE}")
    finally:
        connection.close()
    if wrong:
        return Finding("Kubernetes", False, f"{where}, {version}: {wrong[0]}", wrong[1])
    return Finding("Kubernetes", True, f"{where}, {version}: you may create RayJobs in namespace {NAMESPACE}")


def _wrong(connection: Any) -> tuple[str, str] | None:
    """What keeps a RayJob from being created there, and the mend."""
    from kubernetes import client

    try:
        served = client.CustomObjectsApi(connection).get_api_resources(
            "ray.io", "v1", _request_timeout=ANSWER_SECONDS
        )
        known = any(resource.name == "rayjobs" for resource in served.resources)
    except client.ApiException as error:
        if error.status != 404:
            raise
        known = False
    if not known:
        return "it knows no rayjobs.ray.io", "install KubeRay (docs/kubernetes.md, step 1)"
    reviews = client.AuthorizationV1Api(connection)
    for group, plural, verb in NEEDED:
        action = client.V1ResourceAttributes(group=group, resource=plural, verb=verb, namespace=NAMESPACE)
        spec = client.V1SelfSubjectAccessReviewSpec(resource_attributes=action)
        review = reviews.create_self_subject_access_review(
            client.V1SelfSubjectAccessReview(spec=spec), _request_timeout=ANSWER_SECONDS
        )
        if not review.status.allowed:
            what = f"{plural}.{group}".rstrip(".")
            ask = f"ask for that right; see: kubectl auth can-i {verb} {what} --namespace {NAMESPACE}"
            return f"you may not {verb} {what} in namespace {NAMESPACE}", ask
    try:
        client.CoreV1Api(connection).read_namespace(NAMESPACE, _request_timeout=ANSWER_SECONDS)
    except client.ApiException as error:
        if error.status == 404:
            return f"there is no namespace {NAMESPACE}", "apply the part access (docs/kubernetes.md, step 3)"
        if error.status != 403:  # who may create there need not be allowed to look at it
            raise
    return None


def _cause(error: Exception) -> str:
    """In the words of what is below urllib3, without its addresses of objects in memory."""
    inner = getattr(error, "reason", None) or error
    return str(inner.args[-1] if inner.args else inner).rpartition(": ")[2].rstrip(".")
