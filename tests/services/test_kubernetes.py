"""The RayJob of a run: rendered from k8s/, and applied to a server that answers as Kubernetes does."""

from __future__ import annotations

import datetime
import importlib.util
import ipaddress
import json
import os
import re
import shlex
import shutil
import ssl
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml
from ports import free_port

from ingot.errors import IngotError, UsageError
from ingot.services import kubernetes
from ingot.services.doctor import Finding
from ingot.services.doctor import kubernetes as doctor
from ingot.services.kubernetes import apply, render, resource_name

ROOT = Path(__file__).parents[2]
TINY, BASE = ROOT / "recipes" / "tiny.yaml", ROOT / "recipes" / "base-1b.yaml"
TOKEN = "a-token-of-the-kubeconfig"

pytestmark = pytest.mark.skipif(shutil.which("kubectl") is None, reason="needs kubectl")


def documents(text):
    config, job = yaml.safe_load_all(text)
    return config, job


def test_the_job_runs_the_recipe_that_travels_with_it():
    settings = ["corpus.unit_bytes=1000", "evaluate.prompts=['it''s $HOME; \"x\"']"]
    text = render(TINY, "my-run", "s3://bucket/prefix", "registry/ingot:7", settings=settings, until="tokens")
    config, job = documents(text)
    assert (config["kind"], job["kind"]) == ("ConfigMap", "RayJob")
    assert config["data"] == {"recipe.yaml": TINY.read_text()}
    assert "recipe.yaml: |\n" in text  # as it was written
    assert config["metadata"]["name"] == job["metadata"]["name"] == "my-run-1"
    assert config["metadata"]["namespace"] == job["metadata"]["namespace"] == "ingot"
    cluster = job["spec"]["rayClusterSpec"]
    head = cluster["headGroupSpec"]["template"]["spec"]
    assert {"name": "recipe", "configMap": {"name": "my-run-1"}} in head["volumes"]
    assert {"name": "recipe", "mountPath": "/etc/ingot", "readOnly": True} in head["containers"][0][
        "volumeMounts"
    ]
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        assert group["template"]["metadata"]["labels"]["ingot/of"] == "my-run-1"
        assert group["template"]["spec"]["containers"][0]["image"] == "registry/ingot:7"
    # as the head's shell reads it
    words = subprocess.run(
        ["sh", "-c", f"printf '%s\\0' {job['spec']['entrypoint']}"], capture_output=True, check=True
    )
    asked = words.stdout.decode().split("\0")[:-1]
    assert asked[:5] == ["python", "-m", "ingot.services.cli", "run", "/etc/ingot/recipe.yaml"]
    assert asked[5:8] == ["--keep-output", "--name", "my-run"]
    assert asked[8:12] == ["--store", "s3://bucket/prefix", "--until", "tokens"]
    assert asked[12:] == [word for setting in settings for word in ("--set", setting)]


def test_what_is_not_given_is_the_recipes_and_the_overlays():
    _, job = documents(render(TINY))
    assert job["metadata"]["name"] == "tiny-1"
    words = shlex.split(job["spec"]["entrypoint"])
    assert words[3:] == ["run", "/etc/ingot/recipe.yaml", "--keep-output", "--name", "tiny"]
    image = job["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["containers"][0]["image"]
    assert re.fullmatch(r"ingot:[\d.]+-cpu", image)


@pytest.mark.parametrize(("recipe", "overlay"), [(TINY, "cpu"), (TINY, "gpu"), (BASE, "gpu")])
def test_it_keeps_the_schemas(recipe, overlay):
    if "KUBERAY_CRD_DIR" not in os.environ:
        pytest.skip("needs KubeRay's schemas in KUBERAY_CRD_DIR")
    folder = Path(os.environ["KUBERAY_CRD_DIR"])
    spec = importlib.util.spec_from_file_location("k8s_lint", ROOT / "k8s" / "lint.py")
    linter = sys.modules.setdefault("k8s_lint", importlib.util.module_from_spec(spec))
    if not hasattr(linter, "lint"):
        spec.loader.exec_module(linter)
    config, job = documents(render(recipe, overlay=overlay))
    schemas = {"1.7.0": folder, "1.6.2": folder / "v1.6.2"}
    assert list(linter._kuberay_schema(job, schemas)) == []
    assert list(linter._core_schema(config)) == []
    job["spec"]["entrypont"] = "x"
    [(field, _)] = linter._kuberay_schema(job, schemas)
    assert field == "spec.entrypont"


def test_an_overlay_of_ones_own_gives_its_job(tmp_path):
    tree = shutil.copytree(ROOT / "k8s", tmp_path / "k8s")
    mine = tree / "overlays" / "mine"
    mine.mkdir()
    page = (ROOT / "docs" / "kubernetes.md").read_text()
    [written] = re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)
    (mine / "kustomization.yaml").write_text(written)
    text = render(TINY, overlay=str(mine))
    assert text.count("image: REGISTRY/ingot:") == text.count(" image: ") == 4


def test_an_overlay_that_the_operator_would_refuse_is_refused(tmp_path):
    tree = shutil.copytree(ROOT / "k8s", tmp_path / "k8s")
    job = tree / "base" / "job.yaml"
    job.write_text(
        job.read_text().replace("shutdownAfterJobFinishes: true", "shutdownAfterJobFinishes: false")
    )
    with pytest.raises(UsageError, match=r"RayJob: spec\.ttlSecondsAfterFinished: needs shutdownAfterJob"):
        render(TINY, overlay=str(tree / "overlays" / "cpu"))


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (
            {"recipe_path": BASE},
            r"base-1b\.yaml: pretrain\.workers: 8 × 8 CPU and 1 GPU fit no group .*train: 2 ×",
        ),
        ({"recipe_path": TINY, "store": "/tmp/store"}, "share no disk; name one with --store s3://"),
        (
            {"recipe_path": TINY, "settings": ["store=/tmp/store"]},
            "tiny.yaml: store: /tmp/store: a cluster's",
        ),
        (
            {
                "recipe_path": BASE,
                "overlay": "gpu",
                "settings": ["corpus.sources=[{source: files, name: web, path: web}]"],
            },
            r"base-1b\.yaml: corpus\.sources\.0\.path: web: the cluster's pods don't see this machine's disk",
        ),
        ({"recipe_path": TINY, "overlay": "tpu"}, "overlay tpu: neither one of cpu, gpu nor a folder"),
        ({"recipe_path": TINY, "settings": ["sft.steps=0"]}, r"--set sft\.steps=0: sft\.steps: "),
        ({"recipe_path": TINY, "until": "serve"}, "--until serve: the recipe's stages are"),
        ({"recipe_path": TINY, "name": "Big"}, "name: string should match pattern"),
    ],
)
def test_what_can_not_run_is_refused(words, told):
    with pytest.raises(UsageError, match=told):
        render(**words)


def test_without_kubectl_the_mend_is_told(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(IngotError, match=r"kubectl is not installed, .*; install kubectl"):
        render(TINY)


def test_every_run_has_a_name_that_kubernetes_takes():
    runs = ["tiny", "a.b", "a_b", "a-b", "2024", "ends-", "x" * 80, "x" * 79]
    names = [resource_name(run, 999) for run in runs]
    assert names[0] == "tiny-999"
    assert len(set(names)) == len(runs)
    for name in names:
        assert re.fullmatch("[a-z]([-a-z0-9]*[a-z0-9])?", name)
        assert len(name) <= 47


def test_the_wheel_brings_what_is_rendered(tmp_path):
    for name in ("ingot/__init__.py", "pyproject.toml", "README.md", "LICENSE"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    for name in ("k8s", "recipes"):
        shutil.copytree(ROOT / name, tmp_path / name)
    build = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--quiet", "."]
    subprocess.run(build, cwd=tmp_path, check=True, capture_output=True)
    [wheel] = tmp_path.glob("*.whl")
    target = tmp_path / "installed"
    shutil.unpack_archive(wheel, target, "zip")
    [data] = target.glob("*.data/data/share/ingot")
    for part in ("base", "overlays/cpu", "overlays/gpu"):
        assert kubernetes.kustomize(data / "k8s" / part) == kubernetes.kustomize(ROOT / "k8s" / part)
    assert (data / "recipes" / "tiny.yaml").read_text() == TINY.read_text()


# --- a server that answers as Kubernetes does


class Server(ThreadingHTTPServer):
    """The few calls that a submission makes: objects are created once, and listed by one label."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.lock = threading.Lock()
        self.objects = {}  # path -> object
        self.namespaces = {"ingot"}
        self.resources = ["rayclusters", "rayjobs"]  # of ray.io
        self.forbidden = set()  # plurals

    def state(self, name, state):
        path = f"/apis/ray.io/v1/namespaces/ingot/rayjobs/{name}"
        self.objects[path]["status"] = {"jobDeploymentStatus": state}

    def names(self, plural):
        return [path.rpartition("/")[2] for path in self.objects if f"/{plural}/" in path]


class Handler(BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def answer(self, status, body):
        content = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def do_DELETE(self):
        self.server.objects.pop(self.path.partition("?")[0])
        self.answer(200, {"kind": "Status", "status": "Success"})

    def handle_call(self):
        length = int(self.headers.get("content-length", 0))
        body = json.loads(self.rfile.read(length)) if length else None
        path, _, query = self.path.partition("?")
        found = re.fullmatch(
            r"(?:/api/v1|/apis/ray\.io/v1)/namespaces/([^/]+)/(rayjobs|configmaps)(/[^/]+)?", path
        )
        if self.headers.get("authorization") != f"Bearer {TOKEN}":
            return self.answer(401, {"kind": "Status", "reason": "Unauthorized"})
        if examined := self.examined(path, body):
            return self.answer(*examined)
        if not found or found[1] not in self.server.namespaces:
            return self.answer(404, {"kind": "Status", "reason": "NotFound"})
        with self.server.lock:
            if body is not None:
                name = f"{path}/{body['metadata']['name']}"
                if found[2] in self.server.forbidden:
                    return self.answer(403, {"kind": "Status", "reason": "Forbidden"})
                if name in self.server.objects:
                    return self.answer(409, {"kind": "Status", "reason": "AlreadyExists"})
                body["metadata"]["uid"] = f"uid-{len(self.server.objects)}"
                self.server.objects[name] = body
                return self.answer(201, body)
            if found[3]:
                return self.answer(200, self.server.objects[path])
            label = re.fullmatch("labelSelector=ingot%2Frun%3D(.*)", query)[1]
            items = [
                item
                for name, item in self.server.objects.items()
                if name.startswith(f"{path}/") and item["metadata"]["labels"]["ingot/run"] == label
            ]
            return self.answer(200, {"kind": "RayJobList", "items": items})

    def examined(self, path, body):
        """What the doctor asks."""
        if path == "/version/":
            parts = ("buildDate", "compiler", "gitCommit", "gitTreeState", "goVersion", "platform")
            return 200, {**dict.fromkeys(parts, ""), "major": "1", "minor": "36", "gitVersion": "v1.36.1"}
        if path == "/apis/ray.io/v1" and self.server.resources:
            fields = {"kind": "", "namespaced": True, "singularName": "", "verbs": ["create"]}
            resources = [{"name": name, **fields} for name in self.server.resources]
            return 200, {"kind": "APIResourceList", "groupVersion": "ray.io/v1", "resources": resources}
        if path.endswith("/selfsubjectaccessreviews"):
            asked = body["spec"]["resourceAttributes"]
            assert asked["namespace"] == "ingot"
            return 201, {**body, "status": {"allowed": asked["resource"] not in self.server.forbidden}}
        name = path.removeprefix("/api/v1/namespaces/")
        if name in self.server.namespaces:
            return 200, {"kind": "Namespace", "metadata": {"name": name}}
        return None

    do_GET = do_POST = handle_call


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    """Signed by itself, for 127.0.0.1."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "kubernetes")])
    now = datetime.datetime.now(datetime.UTC)
    address = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([address]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    path = tmp_path_factory.mktemp("certificate") / "server.pem"
    unlocked = serialization.NoEncryption()
    private = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, unlocked)
    path.write_bytes(made.public_bytes(serialization.Encoding.PEM) + private)
    return path


overlay_of = cache(kubernetes.kustomize)  # what is submitted again and again


@pytest.fixture
def server(certificate, monkeypatch, tmp_path):
    server = Server()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    reached = {
        "server": f"https://127.0.0.1:{server.server_address[1]}",
        "certificate-authority": str(certificate),
    }
    kubeconfig = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "local",
        "clusters": [{"name": "local", "cluster": reached}],
        "users": [{"name": "me", "user": {"token": TOKEN}}, {"name": "nobody", "user": {"token": "no"}}],
        "contexts": [
            {"name": "local", "context": {"cluster": "local", "user": "me"}},
            {"name": "refused", "context": {"cluster": "local", "user": "nobody"}},
        ],
    }
    path = tmp_path / "kubeconfig"
    path.write_text(yaml.safe_dump(kubeconfig))
    monkeypatch.setattr("kubernetes.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION", str(path))
    monkeypatch.setattr(kubernetes, "kustomize", lambda folder: deepcopy(overlay_of(folder)))
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.mark.parametrize("ended", ["Failed", "ValidationFailed"])
def test_a_run_is_applied_once_and_again_after_it_has_ended(server, ended):
    first = apply(TINY, "my-run", "s3://bucket/prefix")
    assert (first.name, first.namespace, first.created) == ("my-run-1", "ingot", True)
    for state in (None, "Initializing", "Running"):
        if state:
            server.state("my-run-1", state)
        again = apply(TINY, "my-run", "s3://bucket/prefix")
        assert (again.name, again.created) == ("my-run-1", False)
    server.state("my-run-1", ended)
    after = apply(TINY, "my-run", "s3://bucket/prefix")
    assert (after.name, after.created) == ("my-run-2", True)
    other = apply(TINY, "other", "s3://bucket/prefix")
    assert (other.name, other.created) == ("other-1", True)
    assert server.names("rayjobs") == server.names("configmaps") == ["my-run-1", "my-run-2", "other-1"]


def test_what_is_applied_is_what_is_rendered_and_the_recipe_goes_with_its_job(server):
    apply(TINY, "my-run", "s3://bucket/prefix")
    config, job = documents(render(TINY, "my-run", "s3://bucket/prefix"))
    there = {path.split("/")[-2]: dict(body) for path, body in server.objects.items()}
    uid = there["rayjobs"]["metadata"].pop("uid")
    assert there["rayjobs"] == job
    owner = {"apiVersion": "ray.io/v1", "kind": "RayJob", "name": "my-run-1", "uid": uid}
    assert there["configmaps"]["metadata"]["ownerReferences"] == [owner]
    assert there["configmaps"]["data"] == config["data"]


def test_a_recipe_that_a_killed_submission_left_out_is_brought(server):
    apply(TINY, "my-run")
    [path] = [path for path in server.objects if "configmaps" in path]
    del server.objects[path]
    assert apply(TINY, "my-run").created is False
    assert server.names("configmaps") == ["my-run-1"]


def test_a_job_whose_recipe_is_refused_is_not_left_behind(server):
    server.forbidden = {"configmaps"}
    with pytest.raises(IngotError, match="namespace ingot: 403 Forbidden"):
        apply(TINY, "my-run")
    assert server.objects == {}
    server.forbidden = set()
    assert apply(TINY, "my-run").created
    server.objects = {name: body for name, body in server.objects.items() if "rayjobs" in name}
    server.forbidden = {"configmaps"}
    with pytest.raises(IngotError, match="403"):
        apply(TINY, "my-run")
    assert server.names("rayjobs") == ["my-run-1"]  # another submission's


def test_submissions_at_once_make_one_job(server):
    with ThreadPoolExecutor(4) as pool:
        submitted = list(pool.map(lambda _: apply(TINY, "my-run"), range(4)))
    assert {each.name for each in submitted} == {"my-run-1"}
    assert [each.created for each in submitted].count(True) == 1
    assert server.names("rayjobs") == server.names("configmaps") == ["my-run-1"]


def test_a_refusal_tells_the_mend(server):
    with pytest.raises(IngotError, match="namespace ingot: 401 Unauthorized; look with: kubectl auth can-i"):
        apply(TINY, context="refused")
    with pytest.raises(UsageError, match=r"kubeconfig: .*missing in .*; name one with KUBECONFIG"):
        apply(TINY, context="missing")
    server.namespaces.clear()
    with pytest.raises(
        IngotError, match="404 Not Found; install KubeRay, and apply the overlay's part `access`"
    ):
        apply(TINY)
    assert server.objects == {}


def test_a_server_with_another_certificate_is_not_trusted(server, tmp_path):
    path = tmp_path / "kubeconfig"
    config = yaml.safe_load(path.read_text())
    del config["clusters"][0]["cluster"]["certificate-authority"]
    path.write_text(yaml.safe_dump(config))
    with pytest.raises(IngotError, match=r"Kubernetes at https://127\.0\.0\.1:.*certificate verify failed"):
        apply(TINY)


# --- what the doctor finds


@pytest.fixture
def examined(server, monkeypatch, tmp_path):
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "kubeconfig"))

    def ask(**shown):
        for name, value in shown.items():
            setattr(server, name, value)
        assert server.objects == {}
        return {found.name: found for found in doctor.examine()}

    return ask


def test_the_doctor_finds_a_context_that_takes_runs(examined, server):
    found = examined()
    host = f"https://127.0.0.1:{server.server_address[1]}"
    said = f"context local at {host}, v1.36.1: you may create RayJobs in namespace ingot"
    assert found["Kubernetes"] == Finding("Kubernetes", True, said)
    assert found["kubectl"].well


@pytest.mark.parametrize(
    ("shown", "found", "mend"),
    [
        ({"resources": []}, "it knows no rayjobs.ray.io", "install KubeRay"),
        ({"resources": ["rayclusters"]}, "it knows no rayjobs.ray.io", "install KubeRay"),
        (
            {"forbidden": {"rayjobs"}},
            "you may not list rayjobs.ray.io in namespace ingot",
            "kubectl auth can-i list rayjobs.ray.io --namespace ingot",
        ),
        ({"forbidden": {"configmaps"}}, "you may not create configmaps in namespace ingot", "can-i create"),
        ({"namespaces": set()}, "there is no namespace ingot", "apply the part access"),
    ],
)
def test_the_doctor_tells_what_a_cluster_lacks(examined, shown, found, mend):
    told = examined(**shown)["Kubernetes"]
    assert not told.well
    assert found in told.found
    assert mend in told.mend


def test_the_doctor_tells_what_is_wrong_with_a_context(examined, tmp_path):
    path = tmp_path / "kubeconfig"
    config = yaml.safe_load(path.read_text())

    def told(**changed):
        path.write_text(yaml.safe_dump({**config, **changed}))
        found = examined()["Kubernetes"]
        assert not found.well
        assert "choose" in found.mend
        assert TOKEN not in str(found)
        return found.found

    assert "context refused at https://127.0.0.1:" in (said := told(**{"current-context": "refused"}))
    assert said.endswith(": 401 Unauthorized")
    for changed in ({"current-context": ""}, {"clusters": []}):
        assert told(**changed).endswith("its current context is none, or not whole")
    reached = {"server": config["clusters"][0]["cluster"]["server"]}
    assert "certificate" in told(clusters=[{"name": "local", "cluster": reached}])
    nowhere = [{"name": "local", "cluster": {"server": f"https://127.0.0.1:{free_port()}"}}]
    began = time.monotonic()
    assert "no answer (" in (said := told(clusters=nowhere))
    assert "Connection refused" in said
    assert time.monotonic() - began < doctor.ANSWER_SECONDS


def test_no_kubeconfig_is_no_fault_unless_one_is_named(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("KUBECONFIG", raising=False)
    [found] = doctor.examine()
    assert found.well
    assert "no kubeconfig at ~/.kube/config: ingot submit --to kubernetes can print" in found.found
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "missing"))
    [found] = doctor.examine()
    assert not found.well


def test_the_command_prints_what_is_rendered(run_ingot: Any) -> None:
    words = ["submit", str(TINY), "--to", "kubernetes", "--render", "--name", "mine", "--until", "dedup"]
    done = run_ingot(*words, env={"INGOT_STORE": "s3://bucket/prefix"})
    assert done.returncode == 0, done.stderr
    config, job = yaml.safe_load_all(done.stdout)
    assert (config["kind"], job["kind"]) == ("ConfigMap", "RayJob")
    assert job["metadata"]["name"] == "mine-1"
    for part in ("--name mine", "--store s3://bucket/prefix", "--until dedup"):
        assert part in job["spec"]["entrypoint"]
    refused = run_ingot("submit", str(TINY), "--to", "http://127.0.0.1:8265", "--render")
    assert refused.returncode == 2
    assert "use it with --to kubernetes" in refused.stderr
