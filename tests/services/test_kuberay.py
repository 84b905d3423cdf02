"""The operator's own rules: each is broken by one fixture, and what is shipped breaks none."""

from __future__ import annotations

from copy import deepcopy
from functools import reduce
from typing import Any

import pytest

from ingot.services.kuberay import operator_faults

POD = {"spec": {"containers": [{"name": "ray", "env": []}]}}
CLUSTER: dict[str, Any] = {
    "rayVersion": "2.60.0",
    "headGroupSpec": {"rayStartParams": {}, "template": POD},
    "workerGroupSpecs": [
        {"groupName": name, "minReplicas": 0, "maxReplicas": 2, "rayStartParams": {}, "template": POD}
        for name in ("data", "train")
    ],
}
SCALED = {"enableInTreeAutoscaling": True, "autoscalerOptions": {"version": "v2"}}
SPECS = {
    "RayCluster": CLUSTER,
    "RayJob": {"entrypoint": "python x.py", "rayClusterSpec": {**CLUSTER, **SCALED}},
    "RayService": {"serveConfigV2": "", "rayClusterConfig": {**CLUSTER, **SCALED}},
    "RayCronJob": {"schedule": "@daily", "jobTemplate": {"entrypoint": "x", "rayClusterSpec": CLUSTER}},
}
RULES = "deletionStrategy.deletionRules"
SELF, WORKERS = "DeleteSelf", "DeleteWorkers"
GROUP = "workerGroupSpecs.0"


def deletion(policy, ttl=0, **condition):
    return {"policy": policy, "condition": {**(condition or {"jobStatus": "FAILED"}), "ttlSeconds": ttl}}


def env(name):
    return [{"name": name, "value": "1"}]


BROKEN = [  # kind, what is set, the field of the fault
    ("RayCluster", {"metadata.name": "x" * 54}, "metadata.name"),
    ("RayJob", {"metadata.name": "x" * 48}, "metadata.name"),
    ("RayService", {"metadata.name": "1-service"}, "metadata.name"),
    ("RayCronJob", {"metadata.name": "x" * 37}, "metadata.name"),
    ("RayCronJob", {"spec.jobTemplate.entrypoint": ""}, "spec.jobTemplate.entrypoint"),
    ("RayJob", {"spec.suspend": True}, "spec.suspend"),
    ("RayJob", {"spec.ttlSecondsAfterFinished": -1}, "spec.ttlSecondsAfterFinished"),
    ("RayJob", {"spec.ttlSecondsAfterFinished": 5}, "spec.ttlSecondsAfterFinished"),
    ("RayJob", {"spec.backoffLimit": -1}, "spec.backoffLimit"),
    ("RayJob", {"spec.backoffLimit": 1, "spec.clusterSelector": {"a": "b"}}, "spec.backoffLimit"),
    ("RayJob", {"spec.backoffLimit": 1, "spec.submissionMode": "InteractiveMode"}, "spec.backoffLimit"),
    ("RayJob", {"spec.activeDeadlineSeconds": 0}, "spec.activeDeadlineSeconds"),
    ("RayJob", {"spec.preRunningDeadlineSeconds": 0}, "spec.preRunningDeadlineSeconds"),
    ("RayJob", {"spec.entrypoint": ""}, "spec.entrypoint"),
    ("RayJob", {"spec.rayClusterSpec": None}, "spec.rayClusterSpec"),
    (
        "RayJob",
        {"spec.submissionMode": "HTTPMode", "spec.submitterPodTemplate": POD},
        "spec.submitterPodTemplate",
    ),
    ("RayJob", {"spec.runtimeEnvYAML": "[1"}, "spec.runtimeEnvYAML"),
    ("RayJob", {f"spec.{RULES}": []}, f"spec.{RULES}"),
    ("RayJob", {f"spec.{RULES}": [deletion(SELF)], "spec.shutdownAfterJobFinishes": True}, f"spec.{RULES}"),
    ("RayJob", {f"spec.{RULES}": [deletion(WORKERS)]}, f"spec.{RULES}.0.policy"),
    ("RayJob", {f"spec.{RULES}": [deletion(SELF, -1)]}, f"spec.{RULES}.0.condition.ttlSeconds"),
    ("RayJob", {f"spec.{RULES}": [deletion(SELF), deletion(SELF)]}, f"spec.{RULES}.1"),
    ("RayJob", {f"spec.{RULES}": [deletion(SELF, 1), deletion("DeleteCluster", 2)]}, f"spec.{RULES}"),
    ("RayJob", {f"spec.{RULES}": [{"policy": SELF}]}, f"spec.{RULES}.0.condition"),
    ("RayService", {"spec.rayClusterDeletionDelaySeconds": -1}, "spec.rayClusterDeletionDelaySeconds"),
    (
        "RayService",
        {"spec.upgradeStrategy.type": "NewClusterWithIncrementalUpgrade"},
        "spec.upgradeStrategy.clusterUpgradeOptions",
    ),
    (
        "RayJob",
        {"spec.rayClusterSpec.upgradeStrategy.type": "Recreate"},
        "spec.rayClusterSpec.upgradeStrategy",
    ),
    ("RayCluster", {"spec.autoscalerOptions.version": "v2"}, "spec.autoscalerOptions"),
    (
        "RayJob",
        {"spec.rayClusterSpec.headGroupSpec.template.spec.containers.0.env": env("RAY_enable_autoscaler_v2")},
        "spec.rayClusterSpec.autoscalerOptions.version",
    ),
    ("RayCluster", {"spec.rayVersion": "", "spec.authOptions.mode": "token"}, "spec.authOptions.mode"),
    (
        "RayJob",
        {"spec.rayClusterSpec.authOptions": {"mode": "token", "enableK8sTokenAuth": True}},
        "spec.rayClusterSpec.authOptions.enableK8sTokenAuth",
    ),
    (
        "RayJob",
        {f"spec.rayClusterSpec.{GROUP}.template.spec.restartPolicy": "Always"},
        f"spec.rayClusterSpec.{GROUP}.template.spec.restartPolicy",
    ),
    ("RayCluster", {f"spec.{GROUP}.minReplicas": 3}, f"spec.{GROUP}.minReplicas"),
    ("RayCluster", {f"spec.{GROUP}.minReplicas": -1}, f"spec.{GROUP}.minReplicas"),
    ("RayCluster", {f"spec.{GROUP}.replicas": 3}, f"spec.{GROUP}.replicas"),
    ("RayCluster", {f"spec.{GROUP}.numOfHosts": 0}, f"spec.{GROUP}.numOfHosts"),
    ("RayCluster", {f"spec.{GROUP}.idleTimeoutSeconds": 9}, f"spec.{GROUP}.idleTimeoutSeconds"),
    ("RayCluster", {f"spec.{GROUP}.priority": 9}, f"spec.{GROUP}.priority"),
    ("RayCluster", {f"spec.{GROUP}.suspend": True}, f"spec.{GROUP}.suspend"),
    ("RayCluster", {f"spec.{GROUP}.groupName": "train"}, "spec.workerGroupSpecs.1.groupName"),
    (
        "RayCluster",
        {f"spec.{GROUP}.groupName": "A_b", "spec.networkPolicy": {"mode": "DenyAll"}},
        f"spec.{GROUP}.groupName",
    ),
    ("RayCluster", {f"spec.{GROUP}.rayStartParams.labels": "a=b"}, f"spec.{GROUP}.rayStartParams.labels"),
    (
        "RayCluster",
        {f"spec.{GROUP}.rayStartParams.num-cpus": "1", f"spec.{GROUP}.resources": {"CPU": "1"}},
        f"spec.{GROUP}.resources",
    ),
    ("RayCluster", {f"spec.{GROUP}.template.spec.containers": []}, f"spec.{GROUP}.template.spec.containers"),
    (
        "RayCluster",
        {"spec.gcsFaultToleranceOptions.backend": "redis"},
        "spec.gcsFaultToleranceOptions.redisAddress",
    ),
    (
        "RayCluster",
        {
            "spec.gcsFaultToleranceOptions.redisAddress": "redis:6379",
            "spec.headGroupSpec.template.spec.containers.0.env": env("REDIS_PASSWORD"),
        },
        "spec.headGroupSpec.template.spec.containers.0.env",
    ),
    (
        "RayCluster",
        {"spec.gcsFaultToleranceOptions.backend": "rocksdb"},
        "spec.gcsFaultToleranceOptions.storage",
    ),
]


def resource(kind: str) -> dict[str, Any]:
    return deepcopy({"kind": kind, "metadata": {"name": "mine"}, "spec": SPECS[kind]})


@pytest.mark.parametrize("kind", SPECS)
def test_a_resource_that_keeps_the_rules_has_no_faults(kind):
    assert list(operator_faults(resource(kind))) == []


@pytest.mark.parametrize(("kind", "changes", "field"), BROKEN)
def test_a_broken_rule_is_found_with_its_field(kind, changes, field):
    document = resource(kind)
    for place, value in changes.items():
        *parents, last = (int(part) if part.isdigit() else part for part in place.split("."))
        node = reduce(
            lambda node, part: node.setdefault(part, {}) if isinstance(node, dict) else node[part],
            parents,
            document,
        )
        node[last] = value
    assert field in [found for found, _ in operator_faults(document)]
