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

from ingot.services.doctor import Finding, examine


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
    assert {"Python", "cores", "memory", "torch", "ray", "vllm", "store", "Ray", "C++ compiler"} <= names


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
    assert "creates once" in found.found


def test_a_store_that_cannot_be_written_is_a_problem(tmp_path: Path, s3: Any) -> None:
    (tmp_path / "file").touch()
    found = of(examine(str(tmp_path / "file" / "store")), "store")
    assert not found.well
    assert "can't write" in found.found
    assert "choose a folder you may write to" in found.mend
    assert "make the bucket" in of(examine("s3://no-such-bucket/x"), "store").mend
    assert not of(examine("gs://x/y"), "store").well


@pytest.mark.parametrize(
    "address", ["127.0.0.1:9", "ray://127.0.0.1:10001", "no-such-host.invalid:6379", "x"]
)
def test_a_ray_that_does_not_answer_is_a_problem(
    address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", address)
    found = of(examine(str(tmp_path)), "Ray")
    assert not found.well
    assert address in found.found
    assert "RAY_ADDRESS" in found.mend


def test_a_ray_that_answers_is_well(ray_local: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", ray.get_runtime_context().gcs_address)
    assert of(examine(str(tmp_path)), "Ray").well


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
