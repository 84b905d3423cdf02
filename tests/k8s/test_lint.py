"""What `make lint-k8s` finds: nothing in the tree as it is, and planted faults with their file and field."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
README, RECIPES = ROOT / "docs" / "kubernetes.md", ROOT / "recipes"
CLUSTER = "base/cluster.yaml: RayCluster/ingot"
JOB = "base/job.yaml: RayJob/ingot-run"
SERVICE = "base/service.yaml: RayService/ingot-serve"


pytestmark = pytest.mark.long


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    return Path(shutil.copytree(ROOT / "k8s", tmp_path / "k8s"))


def test_the_tree_has_no_faults(linter, crds):
    assert linter.lint(ROOT / "k8s", README, RECIPES, crds) == []


FAULTS = {
    "a misspelt field of a cluster": (
        ("base/cluster.yaml", "idleTimeoutSeconds: 120", "idleTimeoutSecond: 120"),
        f"{CLUSTER}: spec.autoscalerOptions.idleTimeoutSecond: KubeRay 1.7.0 has no such field",
    ),
    "a misspelt field of a pod": (
        ("base/cluster.yaml", "terminationGracePeriodSeconds: 150 #", "terminationGracePeriod: 150 #"),
        f"{JOB}: spec.rayClusterSpec.headGroupSpec.template.spec.terminationGracePeriod: ",
    ),
    "a value that is none": (
        ("base/cluster.yaml", "mode: token", "mode: tokens"),
        f"{CLUSTER}: spec.authOptions.mode: KubeRay 1.7.0: 'tokens' is not one of",
    ),
    "a rule of the operator's that no schema holds": (
        ("base/job.yaml", "shutdownAfterJobFinishes: true", "shutdownAfterJobFinishes: false"),
        f"{JOB}: spec.ttlSecondsAfterFinished: needs shutdownAfterJobFinishes: true",
    ),
    "a misspelt field of metadata": (
        ("base/service.yaml", "serve\n  labels:", "serve\n  lables:"),
        f"{SERVICE}: metadata: Kubernetes 1.32: Additional properties",
    ),
    "a misspelt field of a core kind": (
        ("base/network.yaml", "policyTypes: [Ingress, Egress]", "policyType: [Ingress, Egress]"),
        "base/network.yaml: NetworkPolicy/deny-all: spec: Kubernetes 1.32: Additional properties",
    ),
    "a service account that is not there": (
        ("base/access.yaml", "name: ingot-train", "name: ingot-trainer"),
        f"{SERVICE}: spec.rayClusterConfig.workerGroupSpecs.1.template.spec.serviceAccountName: "
        "there is no ServiceAccount ingot-train",
    ),
    "a secret that is not there": (
        ("base/cluster.yaml", "secretName: ingot-token", "secretName: token"),
        f"{CLUSTER}: spec.authOptions.secretName: there is no Secret token",
    ),
    "a key that a secret lacks": (
        ("base/cluster.yaml", "key: AWS_SECRET_ACCESS_KEY", "key: AWS_SECRET"),
        f"{CLUSTER}: spec.headGroupSpec.template.spec.containers.0.env.7.valueFrom."
        "secretKeyRef: the Secret ingot-store has no key AWS_SECRET",
    ),
    "a config map that is not there": (
        ("base/cluster.yaml", "name: ingot-store, key: INGOT_STORE", "name: store, key: INGOT_STORE"),
        f"{CLUSTER}: spec.headGroupSpec.template.spec.containers.0.env.3.valueFrom."
        "configMapKeyRef: there is no ConfigMap store",
    ),
    "a claim that is not there": (
        (
            "base/cluster.yaml",
            "emptyDir: { medium: Memory, sizeLimit: 2Gi }",
            "emptyDir: {}\n          - name: cache\n            persistentVolumeClaim: { claimName: cache }",
        ),
        f"{CLUSTER}: spec.headGroupSpec.template.spec.volumes.1.persistentVolumeClaim: "
        "there is no PersistentVolumeClaim cache",
    ),
    "an import path without a module": (
        ("base/service.yaml", "serve.app:build", "serve.apps:build"),
        f"{SERVICE}: spec.serveConfigV2: ingot: import_path ingot.services.serve.apps:build: No module named",
    ),
    "an import path without a builder": (
        ("base/service.yaml", "app:build", "app:make"),
        f"{SERVICE}: spec.serveConfigV2: ingot: import_path ingot.services.serve.app:make: "
        "ingot.services.serve.app has no make",
    ),
    "an argument that the builder does not know": (
        ("base/service.yaml", "replicas: 1", "replica: 1"),
        f"{SERVICE}: spec.serveConfigV2: ingot: args.options.replica: Unexpected",
    ),
    "a replica too large for the groups": (
        ("base/service.yaml", "gpus: 1", "gpus: 2"),
        f"{SERVICE}: spec.serveConfigV2: ingot: args.options.replicas: 1 × 4 CPU and 2 GPU fit no group",
    ),
    "an entry point without a module": (
        ("base/job.yaml", "ingot.services.cli", "ingot.service.cli"),
        f"{JOB}: spec.entrypoint: no module ingot.service.cli",
    ),
    "an option that no run knows": (
        ("base/job.yaml", "--keep-output", "--keep-outptu"),
        f"{JOB}: spec.entrypoint: No such option: --keep-outptu",
    ),
    "a recipe that is not shipped": (
        ("base/job.yaml", "base-1b.yaml", "base-7b.yaml"),
        f"{JOB}: spec.entrypoint: {RECIPES}/base-7b.yaml: can't read the recipe",
    ),
    "a recipe too large for the groups": (
        ("base/job.yaml", "--set evaluate={}", "--set evaluate={} --set pretrain.workers=16"),
        f"{JOB}: spec.entrypoint: pretrain.workers: 16 × 8 CPU and 1 GPU fit no group",
    ),
    "a group without CPUs": (
        (
            "components/cpu/kustomization.yaml",
            'value: { requests: { cpu: "1", memory: 4Gi, ephemeral-storage: 4Gi }, '
            'limits: { cpu: "1", memory: 4Gi } }',
            "value: {}",
        ),
        f"{CLUSTER}: spec: Ray's autoscaler can't read it: ValueError",
    ),
    "a patch of another group": (
        ("base/cluster.yaml", "groupName: serve", "groupName: server"),
        "overlays/gpu/kustomization.yaml: overlays/gpu: kustomize: ",
    ),
}


@pytest.mark.parametrize(("planted", "told"), FAULTS.values(), ids=FAULTS)
def test_a_fault_is_told_with_its_file_object_and_field(linter, crds, tree, planted, told):
    file, old, new = planted
    text = (tree / file).read_text()
    assert old in text
    (tree / file).write_text(text.replace(old, new))
    part = "overlays/cpu" if "cpu" in file else "overlays/gpu"
    lines = list(map(str, linter.lint(tree, README, RECIPES, crds, [part])))
    assert any(line.startswith(f"k8s/{told}") for line in lines), "\n".join(lines) or "no faults"


def test_a_recipe_too_large_for_every_overlay_is_told(linter, crds, tmp_path):
    recipes = shutil.copytree(RECIPES, tmp_path / "recipes")
    path = recipes / "base-1b.yaml"
    path.write_text(path.read_text().replace("workers: 8", "workers: 64"))
    faults = linter.lint(ROOT / "k8s", README, recipes, {})
    assert "recipes/base-1b.yaml: recipe: workers: its trainings fit the groups of no overlay" in map(
        str, faults
    )
    assert any(
        fault.thing == "RayJob/ingot-run" and "64 × 8 CPU and 1 GPU" in fault.words for fault in faults
    )


def test_a_secret_that_the_page_no_longer_tells_to_make_is_told(linter, tmp_path):
    page = tmp_path / "kubernetes.md"
    page.write_text(
        README.read_text().replace("create secret generic ingot-token", "create secret generic x")
    )
    faults = linter.lint(ROOT / "k8s", page, RECIPES, {})
    assert any(fault.words == "there is no Secret ingot-token" for fault in faults)


def test_what_is_missing_is_said_and_only_that_is_left_out(tmp_path):
    command = [sys.executable, ROOT / "k8s" / "lint.py"]
    without = {**os.environ, "KUBERAY_CRD_DIR": str(tmp_path)}
    done = subprocess.run(command, env=without, capture_output=True, text=True)
    first, last = done.stdout.splitlines()
    assert first == f"k8s: NOT CHECKED against KubeRay 1.6.2 and 1.7.0: no schemas below {tmp_path}"
    assert last.endswith("no faults; checked against Kubernetes 1.32, Kubernetes 1.37")
    assert done.returncode == 0

    done = subprocess.run(command, env={**without, "PATH": str(tmp_path)}, capture_output=True, text=True)
    assert done.stdout == "k8s: NOT CHECKED: kubectl is not installed, so nothing was rendered\n"
    assert done.returncode == 0
