"""The rules of the KubeRay operator (1.7) that no schema holds, so that a resource which it would refuse, or
never start, is found before it is applied."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from itertools import pairwise
from typing import Any

import yaml

Fault = tuple[str, str]  # field, message
CLUSTER_FIELD = {"RayCluster": "", "RayJob": "rayClusterSpec", "RayService": "rayClusterConfig"}
LONGEST_NAME = {"RayCluster": 53, "RayJob": 47, "RayService": 47, "RayCronJob": 36}
REDIS = ("RAY_REDIS_ADDRESS", "REDIS_PASSWORD", "REDIS_USERNAME")
# Ray's options that a group's `resources` set, and what they set
RESOURCES = ("num-cpus", "num-gpus", "memory", "resources")


def operator_faults(document: Mapping[str, Any]) -> Iterator[Fault]:
    """The field and the message of each rule that a resource of KubeRay breaks; none for other kinds."""
    kind, spec = document["kind"], document.get("spec", {})
    if kind not in LONGEST_NAME:
        return
    yield from _name(kind, document["metadata"]["name"])
    if kind == "RayCronJob":
        job = spec.get("jobTemplate", {}).get("spec", spec.get("jobTemplate", {}))
        yield from (
            (f"spec.jobTemplate.{field}", message)
            for field, message in _job(job) + list(_nested("RayJob", job))
        )
        return
    if kind == "RayJob":
        yield from ((f"spec.{field}", message) for field, message in _job(spec))
    if kind == "RayService":
        yield from ((f"spec.{field}", message) for field, message in _service(document["metadata"], spec))
    yield from ((f"spec.{field}".rstrip("."), message) for field, message in _nested(kind, spec))


def _nested(kind: str, spec: Mapping[str, Any]) -> Iterator[Fault]:
    field = CLUSTER_FIELD[kind]
    cluster = spec.get(field) if field else spec
    if cluster is None:
        if not (kind == "RayJob" and spec.get("clusterSelector")):
            yield field, "there is no cluster; describe one"
        return
    for place, message in _cluster(kind, cluster):
        yield f"{field}.{place}".lstrip("."), message


def _name(kind: str, name: str) -> Iterator[Fault]:
    if len(name) > LONGEST_NAME[kind]:
        yield "metadata.name", f"longer than the {LONGEST_NAME[kind]} characters that a {kind} may have"
    if not re.fullmatch("[a-z]([-a-z0-9]*[a-z0-9])?", name):
        yield "metadata.name", "not lower-case letters, digits and hyphens that begin with a letter"


def _job(spec: Mapping[str, Any]) -> list[Fault]:
    mode, shutdown = spec.get("submissionMode", "K8sJobMode"), spec.get("shutdownAfterJobFinishes", False)
    selector, rules = spec.get("clusterSelector"), spec.get("deletionStrategy", {}).get("deletionRules")
    ttl = spec.get("ttlSecondsAfterFinished", 0)
    cluster = spec.get("rayClusterSpec") or {}
    found: list[Fault] = []

    def rule(broken: object, field: str, message: str) -> None:
        if broken:
            found.append((field, message))

    rule(spec.get("suspend") and not shutdown, "suspend", "needs shutdownAfterJobFinishes: true")
    rule(spec.get("suspend") and selector, "suspend", "does not go with clusterSelector")
    rule(spec.get("suspend") and mode == "InteractiveMode", "suspend", "does not go with InteractiveMode")
    rule(ttl < 0, "ttlSecondsAfterFinished", "must not be negative")
    rule(ttl > 0 and not shutdown, "ttlSecondsAfterFinished", "needs shutdownAfterJobFinishes: true")
    rule(spec.get("backoffLimit", 0) < 0, "backoffLimit", "must not be negative")
    rule(spec.get("backoffLimit", 0) > 0 and selector, "backoffLimit", "does not go with clusterSelector")
    rule(
        spec.get("backoffLimit", 0) > 0 and mode == "InteractiveMode",
        "backoffLimit",
        "does not go with InteractiveMode",
    )
    for field in ("activeDeadlineSeconds", "preRunningDeadlineSeconds"):
        rule(spec.get(field, 1) <= 0, field, "must be above zero")
    rule(
        not spec.get("entrypoint") and mode != "InteractiveMode",
        "entrypoint",
        "missing: only InteractiveMode goes without",
    )
    rule(
        mode in ("HTTPMode", "InteractiveMode", "SidecarMode") and spec.get("submitterPodTemplate"),
        "submitterPodTemplate",
        f"there is no submitter pod in {mode}",
    )
    rule(mode == "SidecarMode" and selector, "submissionMode", "SidecarMode does not go with clusterSelector")
    head = cluster.get("headGroupSpec", {}).get("template", {}).get("spec", {})
    rule(
        mode == "SidecarMode" and head.get("restartPolicy", "Never") != "Never",
        "rayClusterSpec.headGroupSpec.template.spec.restartPolicy",
        "must be Never in SidecarMode",
    )
    rule(selector and cluster, "clusterSelector", "does not go with rayClusterSpec")
    rule(selector == {}, "clusterSelector", "names no cluster")
    rule(selector and shutdown, "clusterSelector", "does not go with shutdownAfterJobFinishes")
    environment = spec.get("runtimeEnvYAML")
    if environment is not None:
        try:
            rule(not isinstance(yaml.safe_load(environment), dict), "runtimeEnvYAML", "not a mapping in YAML")
        except yaml.YAMLError:
            found.append(("runtimeEnvYAML", "not YAML"))
    if rules is not None:
        found += _deletion(spec, rules, bool(selector), bool(cluster.get("enableInTreeAutoscaling")))
    return found


def _deletion(
    spec: Mapping[str, Any], rules: list[dict[str, Any]], selected: bool, autoscaled: bool
) -> Iterator[Fault]:
    place = "deletionStrategy.deletionRules"
    if not rules:
        yield place, "empty"
    for field in ("shutdownAfterJobFinishes", "ttlSecondsAfterFinished"):
        if spec.get(field):
            yield place, f"does not go with {field}"
    seen = set()
    delays: dict[str, dict[str, int]] = {}
    for index, rule in enumerate(rules):
        here, policy, condition = f"{place}.{index}", rule.get("policy", ""), rule.get("condition", {})
        states = [condition[name] for name in ("jobStatus", "jobDeploymentStatus") if condition.get(name)]
        if len(states) != 1:
            yield f"{here}.condition", "needs one of jobStatus and jobDeploymentStatus"
        if condition.get("ttlSeconds", 0) < 0:
            yield f"{here}.condition.ttlSeconds", "must not be negative"
        if selected and policy in ("DeleteCluster", "DeleteWorkers"):
            yield f"{here}.policy", f"{policy} does not go with clusterSelector"
        if autoscaled and policy == "DeleteWorkers":
            yield f"{here}.policy", "DeleteWorkers does not go with enableInTreeAutoscaling"
        key = (policy, *states)
        if key in seen:
            yield here, f"a second rule {policy} for {' '.join(states)}"
        seen.add(key)
        delays.setdefault(" ".join(states), {})[policy] = condition.get("ttlSeconds", 0)
    for state, by_policy in delays.items():
        order = [name for name in ("DeleteWorkers", "DeleteCluster", "DeleteSelf") if name in by_policy]
        for first, second in pairwise(order):
            if by_policy[first] > by_policy[second]:
                yield place, f"{state}: {first} comes later than {second}, which deletes its pods too"


def _service(metadata: Mapping[str, Any], spec: Mapping[str, Any]) -> Iterator[Fault]:
    strategy = spec.get("upgradeStrategy", {})
    options = strategy.get("clusterUpgradeOptions")
    if spec.get("rayClusterDeletionDelaySeconds", 0) < 0:
        yield "rayClusterDeletionDelaySeconds", "must not be negative"
    if strategy.get("type") == "NewClusterWithIncrementalUpgrade":
        if not (spec.get("rayClusterConfig") or {}).get("enableInTreeAutoscaling"):
            yield "upgradeStrategy.type", "an incremental upgrade needs enableInTreeAutoscaling: true"
        place = "upgradeStrategy.clusterUpgradeOptions"
        if options is None:
            yield place, "missing, and an incremental upgrade needs them"
            return
        for field in ("maxSurgePercent", "stepSizePercent"):
            if not 0 <= options.get(field, 100 if field == "maxSurgePercent" else -1) <= 100:
                yield f"{place}.{field}", "must be from 0 to 100"
        if options.get("stepSizePercent", 0) > options.get("maxSurgePercent", 100):
            yield f"{place}.stepSizePercent", "must not be above maxSurgePercent"
        if options.get("intervalSeconds", 0) <= 0:
            yield f"{place}.intervalSeconds", "must be above zero"
        if not options.get("gatewayClassName"):
            yield f"{place}.gatewayClassName", "missing"
    annotation = "ray.io/initializing-timeout"
    timeout = metadata.get("annotations", {}).get(annotation)
    if timeout is not None and not re.fullmatch(r"(\d+(\.\d+)?(ms|s|m|h))+|[1-9]\d*", timeout):
        yield f"annotations.{annotation}", "neither a duration such as 30m nor seconds above zero"


def _cluster(kind: str, spec: Mapping[str, Any]) -> Iterator[Fault]:
    head, workers = spec.get("headGroupSpec", {}), spec.get("workerGroupSpecs", [])
    scaled, options = spec.get("enableInTreeAutoscaling", False), spec.get("autoscalerOptions", {})
    pods = [("headGroupSpec", head), *((f"workerGroupSpecs.{i}", group) for i, group in enumerate(workers))]
    v2 = scaled and (
        options.get("version") == "v2" or _environment(head).get("RAY_enable_autoscaler_v2") == "1"
    )
    if kind != "RayCluster" and spec.get("upgradeStrategy", {}).get("type"):
        yield "upgradeStrategy", f"only for a RayCluster of its own, not in a {kind}"
    if options and not scaled:
        yield "autoscalerOptions", "needs enableInTreeAutoscaling: true"
    if options.get("version") and "RAY_enable_autoscaler_v2" in _environment(head):
        yield (
            "autoscalerOptions.version",
            "set twice: the head's environment has RAY_enable_autoscaler_v2 too",
        )
    authentication = spec.get("authOptions", {})
    if authentication.get("mode") == "token" and not _version(spec) >= (2, 52):
        yield "authOptions.mode", "token needs rayVersion, and 2.52 or newer"
    if authentication.get("enableK8sTokenAuth"):
        if kind != "RayCluster":
            yield "authOptions.enableK8sTokenAuth", f"not in a {kind}"
        if authentication.get("mode") != "token":
            yield "authOptions.enableK8sTokenAuth", "needs mode: token"
        if authentication.get("secretName"):
            yield "authOptions.enableK8sTokenAuth", "does not go with secretName"
        if not _version(spec) >= (2, 55):
            yield "authOptions.enableK8sTokenAuth", "needs rayVersion 2.55 or newer"
    yield from _fault_tolerance(spec, pods)
    names = [group.get("groupName", "") for group in workers]
    for place, group in pods:
        yield from _group(place, group, bool(v2), bool(scaled), _version(spec))
    for index, name in enumerate(names):
        if name in names[:index] or name == "headgroup":
            yield f"workerGroupSpecs.{index}.groupName", f"{name} is the name of another group"
        if spec.get("networkPolicy") and not re.fullmatch("[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?", name):
            yield f"workerGroupSpecs.{index}.groupName", "not a DNS label, which networkPolicy needs"


def _group(
    place: str, group: Mapping[str, Any], v2: bool, scaled: bool, version: tuple[int, ...]
) -> Iterator[Fault]:
    template = group.get("template", {}).get("spec", {})
    parameters = group.get("rayStartParams") or {}
    if not template.get("containers"):
        yield f"{place}.template.spec.containers", "empty: the first is Ray's"
    if v2 and template.get("restartPolicy", "Never") != "Never":
        yield f"{place}.template.spec.restartPolicy", "must be Never or unset for autoscaler v2"
    if "labels" in parameters:
        yield f"{place}.rayStartParams.labels", "refused: use the group's own field labels"
    if group.get("resources"):
        for field in RESOURCES:
            if field in parameters:
                yield f"{place}.resources", f"does not go with rayStartParams.{field}"
    for key in group.get("labels") or {}:
        if key.startswith("ray.io/"):
            yield f"{place}.labels", f"{key}: labels of ray.io are Ray's own"
    if place == "headGroupSpec":
        return
    least, most, now = group.get("minReplicas"), group.get("maxReplicas"), group.get("replicas")
    for field, value in (("minReplicas", least), ("maxReplicas", most), ("replicas", now)):
        if value is not None and value < 0:
            yield f"{place}.{field}", "must not be negative"
    if least is not None and most is not None and least > most:
        yield f"{place}.minReplicas", f"{least} is above maxReplicas, {most}"
    if now is not None and not scaled:
        if least is not None and now < least:
            yield f"{place}.replicas", f"{now} is below minReplicas, {least}"
        if most is not None and now > most:
            yield f"{place}.replicas", f"{now} is above maxReplicas, {most}"
    if group.get("numOfHosts", 1) < 1:
        yield f"{place}.numOfHosts", "must be above zero"
    if group.get("idleTimeoutSeconds") is not None and not v2:
        yield f"{place}.idleTimeoutSeconds", "needs autoscaler v2"
    if group.get("priority") is not None and not (v2 and version >= (2, 56)):
        yield f"{place}.priority", "needs autoscaler v2 and rayVersion 2.56 or newer"
    if group.get("suspend"):
        yield f"{place}.suspend", "the operator's own: not to be set"


def _fault_tolerance(spec: Mapping[str, Any], pods: list[tuple[str, Any]]) -> Iterator[Fault]:
    options = spec.get("gcsFaultToleranceOptions")
    head = spec.get("headGroupSpec", {})
    if options is None:
        return
    for place, group in pods:
        for name in REDIS:
            if name in _environment(group):
                yield f"{place}.template.spec.containers.0.env", f"{name}: set it by gcsFaultToleranceOptions"
    for name in ("redis-password", "redis-username"):
        if name in (head.get("rayStartParams") or {}):
            yield f"headGroupSpec.rayStartParams.{name}", "set it by gcsFaultToleranceOptions"
    redis = [field for field in ("redisAddress", "redisUsername", "redisPassword") if options.get(field)]
    if options.get("backend", "redis") == "rocksdb":
        for field in [
            *redis,
            *(["externalStorageNamespace"] if options.get("externalStorageNamespace") else []),
        ]:
            yield f"gcsFaultToleranceOptions.{field}", "only for the backend redis"
        storage = options.get("storage", {})
        if bool(storage.get("claimName")) == bool(storage.get("size")):
            yield "gcsFaultToleranceOptions.storage", "needs one of claimName and size"
    elif not options.get("redisAddress"):
        yield "gcsFaultToleranceOptions.redisAddress", "missing"
    elif options.get("storage"):
        yield "gcsFaultToleranceOptions.storage", "only for the backend rocksdb"


def _environment(group: Mapping[str, Any]) -> dict[str, str]:
    containers = group.get("template", {}).get("spec", {}).get("containers") or [{}]
    return {each["name"]: each.get("value", "") for each in containers[0].get("env", [])}


def _version(spec: Mapping[str, Any]) -> tuple[int, ...]:
    found = re.match(r"(\d+)\.(\d+)", str(spec.get("rayVersion", "")))
    return (int(found[1]), int(found[2])) if found else (0, 0)
