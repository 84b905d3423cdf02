"""The doctor finds what is really there, touches nothing that stays, and says what to do."""

from __future__ import annotations

import json
import threading
import uuid
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
import ray

from ingot.pipelines.store import LocalStore
from ingot.services.doctor import Finding, examine


@pytest.fixture(autouse=True)
def _a_home_without_clusters(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the tester's own home and shell say of clusters is not looked at."""
    monkeypatch.setenv("HOME", str(tmp_path_factory.mktemp("home")))
    for name in ("KUBECONFIG", "RAY_API_SERVER_ADDRESS"):
        monkeypatch.delenv(name, raising=False)


def of(findings: list[Finding], name: str) -> Finding:
    [found] = [finding for finding in findings if finding.name == name]
    return found


def test_a_ready_machine_is_well_and_left_as_it_was(tmp_path: Path) -> None:
    findings = examine(str(tmp_path / "new" / "store"))
    size = ("cores", "memory", "disk of Ray's files", "disk of the store")  # the machine's own business
    assert [finding for finding in findings if not finding.well and finding.name not in size] == []
    assert all(bool(finding.mend) != finding.well for finding in findings)
    assert list(tmp_path.iterdir()) == []
    names = {finding.name for finding in findings}
    assert {"Python", "cores", "memory", "torch", "ray", "vllm", "store", "C++ compiler"} <= names
    assert {"Ray token", "Ray", "Ray dashboard", "Kubernetes"} <= names


def test_a_store_in_use_is_left_as_it_was(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "kept").touch()
    assert of(examine(str(tmp_path)), "store").well
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "kept"]
    assert of(examine(str(tmp_path / "empty")), "store").well
    assert (tmp_path / "empty").is_dir()


def test_an_s3_store_is_tried(s3: Any) -> None:
    found = of(examine(s3.uri(uuid.uuid4().hex)), "store")
    assert found.well
    assert "creates, refuses to create again, reads, deletes" in found.found


def test_a_store_without_conditional_writes_is_a_problem(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def put(store: LocalStore, key: str, data: bytes) -> bool:
        path = store.root / key
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        return True

    monkeypatch.setattr(LocalStore, "create", put)
    found = of(examine(str(tmp_path)), "store")
    assert not found.well
    assert "overwrites what is there" in found.found
    assert "If-None-Match" in found.mend


def test_a_store_that_cannot_be_written_is_a_problem(tmp_path: Path, s3: Any) -> None:
    (tmp_path / "file").touch()
    found = of(examine(str(tmp_path / "file" / "store")), "store")
    assert not found.well
    assert "can't write" in found.found
    assert "choose a folder you may write to" in found.mend
    assert "make the bucket" in of(examine("s3://no-such-bucket/x"), "store").mend
    assert not of(examine("gs://x/y"), "store").well


@pytest.mark.parametrize(
    "address",
    ["127.0.0.1:9", "ray://127.0.0.1:10001", "no-such-host.invalid:6379", "x", "http://127.0.0.1:9"],
)
def test_a_ray_that_does_not_answer_is_a_problem(
    address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", address)
    found = of(examine(str(tmp_path)), "Ray")
    assert not found.well
    assert address in found.found
    assert "RAY_ADDRESS" in found.mend


@pytest.fixture(scope="module")
def head(ray_local: None) -> dict[str, str]:
    """The environment that a run joins the tests' own Ray with; it asks for a token."""
    from ray._private.authentication.authentication_token_setup import AuthenticationTokenLoader

    token = AuthenticationTokenLoader.instance().get_raw_token(ignore_auth_mode=True)
    address = ray.get_runtime_context().gcs_address
    return {"RAY_ADDRESS": address, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token}


def told(run_ingot: Any, env: dict[str, str], *words: str) -> tuple[int, list[Finding]]:
    """By the command in a process of its own: Ray reads the mode once, when it is imported."""
    done = run_ingot("doctor", *words, "--json", env=env)
    secret = env.get("RAY_AUTH_TOKEN")
    assert not secret or secret not in done.stdout + done.stderr
    return done.returncode, [Finding(**each) for each in json.loads(done.stdout)["findings"]]


def test_a_ray_that_takes_the_token_is_well(head: dict[str, str], run_ingot: Any, tmp_path: Path) -> None:
    _, findings = told(run_ingot, head, "--store", str(tmp_path))
    assert of(findings, "Ray token") == Finding("Ray token", True, "the one in RAY_AUTH_TOKEN is sent")
    taken = f"{head['RAY_ADDRESS']}: Ray {ray.__version__}, it takes the token"
    assert of(findings, "Ray") == Finding("Ray", True, taken)


@pytest.mark.parametrize(
    ("env", "token", "cluster"),
    [
        ({"RAY_AUTH_TOKEN": "0" * 64}, "is sent", "it does not know this token"),
        ({"RAY_AUTH_TOKEN": ""}, "there is none", "it asks for a token, and none is sent"),
        ({"RAY_AUTH_MODE": ""}, "stays on this machine", "it asks for a token, and none is sent"),
        ({"RAY_AUTH_MODE": "k8s"}, "takes that for disabled", "it asks for a token, and none is sent"),
        ({"RAY_AUTH_TOKEN": "wörtlich"}, "is sent", "no header can carry this token"),
        (
            {"RAY_AUTH_TOKEN": "", "RAY_AUTH_TOKEN_PATH": "/no/such"},
            "no file with a token",
            "it asks for a token, and none is sent",
        ),
    ],
)
def test_a_token_that_a_ray_refuses_is_a_problem(
    env: dict[str, str], token: str, cluster: str, head: dict[str, str], run_ingot: Any, tmp_path: Path
) -> None:
    code, findings = told(run_ingot, {**head, **env}, "--store", str(tmp_path))
    assert code == 1
    assert token in of(findings, "Ray token").found
    found = of(findings, "Ray")
    assert not found.well
    assert cluster in found.found
    assert found.mend == "set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN to the cluster's token"


def test_what_answers_must_be_ray(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server = HTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{server.server_port}")
        assert "it is not Ray" in of(examine(str(tmp_path)), "Ray").found
    finally:
        server.shutdown()
        server.server_close()


def test_the_command_ends_as_the_machine_is(run_ingot: Any, tmp_path: Path) -> None:
    well = run_ingot("doctor", "--store", str(tmp_path), "--json")
    assert well.returncode == 0
    assert json.loads(well.stdout)["ready"] is True
    ill = run_ingot("doctor", "--store", str(tmp_path), env={"RAY_ADDRESS": "127.0.0.1:9"})
    assert ill.returncode == 1
    assert "PROBLEM" in ill.stdout
    assert "nothing answers" in ill.stdout
