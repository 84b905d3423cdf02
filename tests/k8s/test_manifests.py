"""What is rendered keeps rules of Kubernetes and KubeRay that no schema holds, and lets nobody else in."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import yaml

from ingot.services.kubernetes import kustomize

ROOT = Path(__file__).parents[2]
CLUSTERS = {"RayCluster": "", "RayJob": "rayClusterSpec", "RayService": "rayClusterConfig"}
GROUPS = ["head", "data", "train", "serve"]


@pytest.fixture(scope="module", params=["base", "overlays/cpu", "overlays/gpu"])
def documents(request):
    return kustomize(ROOT / "k8s" / request.param)


def of_kind(documents, kind):
    return [document for document in documents if document["kind"] == kind]


def clusters(documents):
    """(resource, specification of its cluster)"""
    for kind, field in CLUSTERS.items():
        [document] = of_kind(documents, kind)
        yield document, document["spec"][field] if field else document["spec"]


def pods(cluster):
    return [group["template"] for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"])]


def test_there_is_one_description_of_pods_and_each_knows_whose_it_is(documents):
    texts = set()
    for document, cluster in clusters(documents):
        name = document["metadata"]["name"]
        assert len(name) <= 47
        assert re.fullmatch("[a-z]([-a-z0-9]*[a-z0-9])?", name)
        labels = [pod["metadata"]["labels"] for pod in pods(cluster)]
        assert [each["ingot/group"] for each in labels] == GROUPS
        assert {each["ingot/of"] for each in labels} == {name}
        texts.add(json.dumps(pods(cluster), sort_keys=True).replace(f'"ingot/of": "{name}"', ""))
    assert len(texts) == 1


def test_groups_come_and_go_by_autoscaler_v2_and_every_process_asks_for_the_token(documents):
    for document, cluster in clusters(documents):
        assert cluster["enableInTreeAutoscaling"] is True
        assert cluster["autoscalerOptions"]["version"] == "v2"
        assert cluster["authOptions"] == {"mode": "token", "secretName": "ingot-token"}
        assert cluster["rayVersion"]  # the operator wants it for the token
        assert "upgradeStrategy" not in cluster or document["kind"] == "RayCluster"
        assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
        for pod in pods(cluster):
            assert pod["spec"].get("restartPolicy", "Never") == "Never"  # as autoscaler v2 wants
        growing = [group["groupName"] for group in cluster["workerGroupSpecs"] if group["maxReplicas"]]
        own = {"RayCluster": ["data", "train", "serve"], "RayJob": ["data", "train"], "RayService": ["serve"]}
        assert growing == own[document["kind"]]  # where two groups would do, the autoscaler takes either
        assert all(group["minReplicas"] == 0 for group in cluster["workerGroupSpecs"])


def test_pods_keep_the_restricted_standard_and_have_time_to_leave(documents):
    [namespace] = of_kind(documents, "Namespace")
    assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
    for _, cluster in clusters(documents):
        _restricted(cluster["autoscalerOptions"]["securityContext"])
        for pod in pods(cluster):
            spec = pod["spec"]
            security = spec["securityContext"]
            assert security["runAsNonRoot"] is True
            assert security["runAsUser"] == 1000
            assert security["seccompProfile"] == {"type": "RuntimeDefault"}
            assert not any(spec.get(field) for field in ("hostNetwork", "hostPID", "hostIPC"))
            assert {kind for volume in spec["volumes"] for kind in volume} <= {
                "name",
                "emptyDir",
                "configMap",
            }
            assert spec["containers"][0]["name"] == "ray"  # the operator takes the first for Ray's
            for container in spec["containers"]:
                _restricted(container["securityContext"])
                resources = container["resources"]
                requests = {
                    name: much for name, much in resources["requests"].items() if "storage" not in name
                }
                assert requests == resources["limits"]
            env = {variable["name"]: variable.get("value") for variable in spec["containers"][0]["env"]}
            drain = int(env["RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"])
            assert spec["terminationGracePeriodSeconds"] >= drain + 30


def _restricted(security):
    assert security["allowPrivilegeEscalation"] is False
    assert security["capabilities"] == {"drop": ["ALL"]}
    assert not security.get("privileged")


def test_only_the_head_may_talk_to_kubernetes(documents):
    accounts = {each["metadata"]["name"]: each for each in of_kind(documents, "ServiceAccount")}
    for _, cluster in clusters(documents):
        head, *workers = [pod["spec"] for pod in pods(cluster)]
        assert accounts[head["serviceAccountName"]]["automountServiceAccountToken"] is True
        for worker in workers:
            assert worker["serviceAccountName"] != head["serviceAccountName"]
            assert accounts[worker["serviceAccountName"]]["automountServiceAccountToken"] is False
            assert worker["automountServiceAccountToken"] is False


def test_no_document_holds_a_secret_and_credentials_come_by_reference(documents):
    assert not of_kind(documents, "Secret")
    for _, cluster in clusters(documents):
        for pod in pods(cluster):
            env = {variable["name"]: variable for variable in pod["spec"]["containers"][0]["env"]}
            for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
                assert list(env[name]["valueFrom"]) == ["secretKeyRef"]
                assert "value" not in env[name]
    for job in of_kind(documents, "RayJob"):
        assert "runtimeEnvYAML" not in job["spec"]  # any client of the Jobs API may read it


def test_what_a_job_prints_outlives_its_cluster(documents):
    for job in of_kind(documents, "RayJob"):
        assert "--keep-output" in job["spec"]["entrypoint"]


def test_disruption_budgets_count_pods_by_our_labels(documents):
    budgets = of_kind(documents, "PodDisruptionBudget")
    assert len(budgets) == 3
    labelled = [pod["metadata"]["labels"] for _, cluster in clusters(documents) for pod in pods(cluster)]
    for budget in budgets:
        assert isinstance(budget["spec"]["minAvailable"], int)  # all that works for pods of other owners
        assert "maxUnavailable" not in budget["spec"]
        wanted = budget["spec"]["selector"]["matchLabels"]
        assert any(wanted.items() <= labels.items() for labels in labelled), wanted


# --- who reaches whom

OPERATOR = {"app.kubernetes.io/name": "kuberay-operator"}
PROMETHEUS = {"app.kubernetes.io/name": "prometheus"}
INGRESS = {"app.kubernetes.io/name": "ingress-nginx"}
CLIENT = {"ingot/client": "true"}
STRANGER = {"app": "stranger"}
OWN = "kubernetes.io/metadata.name"


def pod_of(group, of="ingot-serve"):
    return {"ingot/group": group, "ingot/of": of}


def selected(selector, labels):
    kept = {
        "In": lambda value, values: value in values,
        "NotIn": lambda value, values: value not in values,
    }
    return all(labels.get(key) == value for key, value in selector.get("matchLabels", {}).items()) and all(
        kept[each["operator"]](labels.get(each["key"]), each["values"])
        for each in selector.get("matchExpressions", [])
    )


def admits(documents, direction, own, other, port, namespace=None):
    """Whether the policies of a pod with the labels `own` let `other` through, which is in the namespace with
    the labels `namespace`, or in the same. Policies add up."""
    applying = [
        policy["spec"]
        for policy in of_kind(documents, "NetworkPolicy")
        if direction in policy["spec"]["policyTypes"] and selected(policy["spec"]["podSelector"], own)
    ]
    assert applying, "a pod that no policy applies to reaches everything"
    peers = "from" if direction == "Ingress" else "to"
    for spec in applying:
        for rule in spec.get(direction.lower(), []):
            if "ports" in rule and port not in [each["port"] for each in rule["ports"]]:
                continue
            for peer in rule[peers]:
                near = namespace is None
                if "namespaceSelector" in peer:
                    near = selected(peer["namespaceSelector"], namespace or {OWN: "ingot"})
                if "podSelector" in peer and near and selected(peer["podSelector"], other):
                    return True
    return False


@pytest.mark.parametrize("port", [8265, 6379, 10001, 8000, 8080, 22222])
@pytest.mark.parametrize("group", GROUPS)
def test_who_reaches_a_pod_from_outside(documents, group, port):
    def reach(labels, name, **more):
        return admits(documents, "Ingress", pod_of(group), labels, port, {OWN: name, **more})

    assert reach(OPERATOR, "kuberay-operator") == (port in (8265, 8000))
    assert reach(PROMETHEUS, "monitoring") == (port == 8080)
    assert reach(INGRESS, "ingress-nginx") == (port == 8000)
    assert reach(CLIENT, "apps", **{"ingot/clients": "true"}) == (port == 8000)
    # a label of a pod, which anybody may give, counts in the namespaces that are named alone
    for labels in (OPERATOR, PROMETHEUS, INGRESS, CLIENT, STRANGER, pod_of("head")):
        assert not reach(labels, "apps")
    assert admits(documents, "Ingress", pod_of(group), CLIENT, port) == (port == 8000)


def test_pods_of_ray_reach_each_other_and_strangers_in_the_namespace_do_not(documents):
    for group in GROUPS:
        for other in GROUPS:
            for direction in ("Ingress", "Egress"):
                for of in ("ingot-serve", "my-run-1", "ingot"):
                    assert admits(documents, direction, pod_of(group, of), pod_of(other, of), 22222)
                for of, another in (("ingot-serve", "my-run-1"), ("my-run-1", "ingot-serve")):
                    for port in (8000, 8265, 22222):
                        assert not admits(
                            documents, direction, pod_of(group, of), pod_of(other, another), port
                        )
        assert not admits(documents, "Ingress", pod_of(group), STRANGER, 8265)
        assert not admits(documents, "Ingress", pod_of(group, of="ingot-run"), CLIENT, 8000)
        assert not admits(documents, "Egress", pod_of(group), STRANGER, 443)


@pytest.mark.parametrize(
    ("namespace", "labels", "port"),
    [
        ("kube-system", {"k8s-app": "kube-dns"}, 53),
        ("kube-system", {"app.kubernetes.io/name": "coredns", "k8s-app": "coredns"}, 53),
        ("openshift-dns", {"dns.operator.openshift.io/daemonset-dns": "default"}, 5353),
    ],
)
def test_names_are_resolved(documents, namespace, labels, port):
    assert admits(documents, "Egress", pod_of("data"), labels, port, {OWN: namespace})
    assert not admits(documents, "Egress", pod_of("data"), labels, port, {OWN: "apps"})


def test_the_other_part_has_no_pods_whatever_the_groups_begin_with(tmp_path):
    """An overlay that keeps a machine of each group, and one of them running."""
    tree = shutil.copytree(ROOT / "k8s", tmp_path / "k8s")
    (tree / "overlays" / "mine").mkdir()
    patches = [
        {"op": "add", "path": f"/spec/workerGroupSpecs/{index}/{field}", "value": 1}
        for index in range(3)
        for field in ("minReplicas", "replicas")
    ]
    patch = {"target": {"kind": "RayCluster"}, "patch": yaml.safe_dump(patches)}
    component = {"apiVersion": "kustomize.config.k8s.io/v1alpha1", "kind": "Component", "patches": [patch]}
    (tree / "components" / "mine").mkdir()
    (tree / "components" / "mine" / "kustomization.yaml").write_text(yaml.safe_dump(component))
    overlay = {"resources": ["../cpu"], "components": ["../../components/mine", "../../components/same-pods"]}
    (tree / "overlays" / "mine" / "kustomization.yaml").write_text(yaml.safe_dump(overlay))
    for document, cluster in clusters(kustomize(tree / "overlays" / "mine")):
        own = {"RayJob": ["data", "train"], "RayService": ["serve"]}.get(document["kind"], GROUPS)
        for group in cluster["workerGroupSpecs"]:
            numbers = [group[field] for field in ("minReplicas", "replicas")]
            assert numbers == ([1, 1] if group["groupName"] in own else [0, 0])
            assert (group["maxReplicas"] > 0) == (group["groupName"] in own)


def test_a_head_is_not_evicted_for_a_smaller_cluster_and_disk_is_asked_for(documents):
    for _, cluster in clusters(documents):
        head, *_ = pods(cluster)
        evict = "cluster-autoscaler.kubernetes.io/safe-to-evict"
        assert head["metadata"]["annotations"] == {evict: "false"}
        for pod in pods(cluster):
            assert pod["spec"]["containers"][0]["resources"]["requests"]["ephemeral-storage"]
    for job in of_kind(documents, "RayJob"):
        assert job["spec"]["preRunningDeadlineSeconds"] > 0


def test_nothing_outside_is_reached_but_the_store_and_kubernetes(documents):
    cache_of_names = "169.254.20.10/32"
    for policy in of_kind(documents, "NetworkPolicy"):
        for rule in policy["spec"].get("egress", []):
            ports = {each["port"] for each in rule.get("ports", [])}
            for block in (peer["ipBlock"] for peer in rule["to"] if "ipBlock" in peer):
                if block["cidr"] == cache_of_names:
                    assert ports == {53}
                    continue
                # the machine's metadata, with its credentials
                metadata = {
                    "0.0.0.0/0": ["169.254.0.0/16"],
                    "::/0": ["fe80::/10", "fd00:ec2::254/128", "fd20:ce::254/128"],
                }
                assert block["except"] == metadata[block["cidr"]]
                assert ports <= {443, 6443, 8443}
    [everything] = [p for p in of_kind(documents, "NetworkPolicy") if p["metadata"]["name"] == "deny-all"]
    assert everything["spec"] == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}


def test_a_store_in_a_pod_of_the_cluster_is_reached_by_the_small_overlay_alone():
    def reached(overlay):
        [store] = [
            each["spec"]["egress"]
            for each in of_kind(kustomize(ROOT / "k8s" / overlay), "NetworkPolicy")
            if each["metadata"]["name"] == "store"
        ]
        return [
            {port["port"] for port in rule["ports"]}
            for rule in store
            if {"namespaceSelector": {}} in rule["to"]
        ]

    assert reached("overlays/cpu") == [{9000}]
    assert reached("overlays/gpu") == []


# --- images


@pytest.mark.parametrize("kind", ["cpu", "gpu"])
def test_an_image_is_pinned_and_nobodys_root(kind):
    lines = (ROOT / f"k8s/images/{kind}.Dockerfile").read_text().replace("\\\n", " ").splitlines()
    words = [line.split() for line in lines if line and not line.startswith("#")]
    assert re.fullmatch(r"python:3\.11\.\d+-slim-bookworm@sha256:[0-9a-f]{64}", words[0][1])
    assert words[-1] == ["USER", "1000:1000"]
    for _, *sources, _ in (line for line in words if line[0] == "COPY"):
        assert all((ROOT / source).exists() for source in sources)
    installs = re.findall(r"pip install[^&]*", "\n".join(lines))
    assert all("--no-deps" in install for install in installs)
    assert any(f"requirements/{kind}.txt" in install for install in installs)
    assert all("--require-hashes" in install for install in installs if "requirements/" in install)


def test_an_overlay_names_the_image_that_its_file_makes():
    from ingot import __version__

    for kind in ("cpu", "gpu"):
        overlay = yaml.safe_load((ROOT / f"k8s/overlays/{kind}/kustomization.yaml").read_text())
        assert overlay["images"] == [{"name": "ingot", "newTag": f"{__version__}-{kind}"}]
        assert f"ingot:{__version__}-{kind}" in (ROOT / f"k8s/images/{kind}.Dockerfile").read_text()


def test_parts_of_the_page_are_labels_of_the_documents(documents):
    told = set(re.findall(r"ingot/part=(\w+)", (ROOT / "docs/kubernetes.md").read_text()))
    assert told == {document["metadata"]["labels"]["ingot/part"] for document in documents}
    assert all(document["metadata"]["labels"]["ingot/part"] in told for document in documents)


# --- the page's commands, as kubectl takes them

PARTS = {
    "access": {"Namespace", "ServiceAccount", "NetworkPolicy"},
    "cluster": {"PodDisruptionBudget", "RayCluster"},
    "job": {"RayJob"},
    "serve": {"NetworkPolicy", "PodDisruptionBudget", "RayService"},
}


@pytest.fixture(scope="module")
def kubernetes():
    """The address of a server that knows our kinds and has no objects."""
    kinds = {(d["apiVersion"], d["kind"]) for d in kustomize(ROOT / "k8s/base")}
    groups = sorted({version.split("/")[0] for version, _ in kinds if "/" in version})
    of = {group: next(version for version, _ in kinds if version.startswith(f"{group}/")) for group in groups}
    listed = [{"groupVersion": of[group], "version": of[group].split("/")[1]} for group in groups]
    answers = {
        "/api": {"kind": "APIVersions", "versions": ["v1"]},
        "/apis": {
            "kind": "APIGroupList",
            "apiVersion": "v1",
            "groups": [
                {"name": group, "versions": [version], "preferredVersion": version}
                for group, version in zip(groups, listed, strict=True)
            ],
        },
    }
    for version in {version for version, _ in kinds}:
        answers[f"/api/{version}" if version == "v1" else f"/apis/{version}"] = {
            "kind": "APIResourceList",
            "groupVersion": version,
            "resources": [
                {
                    "name": f"{kind.lower()}s".replace("ys", "ies"),
                    "namespaced": kind != "Namespace",
                    "kind": kind,
                    "verbs": ["get", "create"],
                }
                for other, kind in kinds
                if other == version
            ],
        }

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            body = answers.get(self.path.partition("?")[0])
            missing = {
                "kind": "Status",
                "apiVersion": "v1",
                "status": "Failure",
                "reason": "NotFound",
                "code": 404,
            }
            self.send_response(200 if body else 404)
            self.send_header("content-type", "application/json")
            self.end_headers()
            self.wfile.write(json.dumps(body or missing).encode())

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.mark.parametrize("part", PARTS)
def test_a_part_is_applied_by_its_label(kubernetes, tmp_path, part):
    page = (ROOT / "docs/kubernetes.md").read_text()
    told = f"kubectl apply -k k8s/overlays/mine -l ingot/part={part}"
    assert told in page
    words = told.replace("mine", "cpu").split()
    words += ["--server", kubernetes, "--dry-run=client", "--validate=false", "--output=json"]
    env = {**os.environ, "HOME": str(tmp_path), "KUBECONFIG": str(tmp_path / "none")}
    done = subprocess.run(words, cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    applied = json.loads(done.stdout)
    items = applied["items"] if applied["kind"] == "List" else [applied]
    assert {item["kind"] for item in items} == PARTS[part]
