"""What tests of several floors share: a Ray cluster and an S3 service on this machine, once a session."""

from __future__ import annotations

import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from ports import free_port


@dataclass(frozen=True)
class S3:
    """A running S3 service. Its address and credentials are in this process's environment as in `env`."""

    bucket: str
    env: Mapping[str, str]
    pid: int

    def uri(self, prefix: str) -> str:
        return f"s3://{self.bucket}/{prefix}"


@dataclass
class Recorder:
    """A `Progress` that keeps what it is told."""

    told: list[tuple[Any, ...]] = field(default_factory=list)

    def begin_stage(self, stage: str) -> None:
        self.told.append(("begin", stage))

    def end_stage(self, stage: str, metrics: Mapping[str, Any], skipped: bool, seconds: float) -> None:
        self.told.append(("end", stage, skipped))

    def step(self, name: str, total: int, unit: str = "units") -> None:
        self.told.append(("step", name, total))

    def advance(self, count: int = 1, **figures: float) -> None:
        self.told.append(("advance", count))

    def say(self, line: str, cut: bool = False) -> None:
        self.told.append(("say", line))


@pytest.fixture(scope="session", autouse=True)
def _own_environment() -> Iterator[None]:
    """What the shell says about stores and clusters is not the tests' business."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("RAY_ADDRESS", "INGOT_STORE", "INGOT_LOG", "AWS_PROFILE"):
            patch.delenv(name, raising=False)
        yield


@pytest.fixture(scope="session")
def ray_local() -> Iterator[None]:
    """An embedded Ray of two CPUs, with a worker process for each of them started. Workers can import the
    modules of `tests/pipelines`."""
    import ray

    from ingot.pipelines.cluster import quiet

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(Path(__file__).with_name("pipelines")), prepend=os.pathsep)
        ray.init(
            address="local",
            num_cpus=2,
            include_dashboard=False,
            object_store_memory=100_000_000,
            log_to_driver=False,
        )
        quiet()
        ray.get([ray.remote(lambda: time.sleep(0.5)).remote() for _ in range(2)])
        yield
        ray.shutdown()


@pytest.fixture(scope="session")
def s3() -> Iterator[S3]:
    """An S3 service in a process of its own, with one bucket."""
    port = free_port()
    env = {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    script = Path(__file__).with_name("s3_server.py")
    quiet = subprocess.DEVNULL
    server = subprocess.Popen([sys.executable, str(script), str(port)], stdout=quiet, stderr=quiet)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in env.items():
            patch.setenv(name, value)
        try:
            _wait_for(env["AWS_ENDPOINT_URL"], server)
            import boto3

            boto3.client("s3").create_bucket(Bucket="ingot")
            yield S3("ingot", env, server.pid)
        finally:
            server.kill()
            server.wait()


@pytest.fixture
def recorder() -> Recorder:
    return Recorder()


@pytest.fixture(scope="session")
def run_ingot() -> Any:
    """`run_ingot("runs", "list", …)`: the command line in a process of its own."""

    def run(
        *words: str, cwd: Path | None = None, env: Mapping[str, str] | None = None, timeout: float = 240
    ) -> Any:
        command = [sys.executable, "-m", "ingot.services.cli", *words]
        environment = {**os.environ, "COLUMNS": "200", **(env or {})}
        return subprocess.run(
            command, capture_output=True, text=True, cwd=cwd, env=environment, timeout=timeout
        )

    return run


def _wait_for(url: str, server: subprocess.Popen[bytes]) -> None:
    end = time.monotonic() + 60
    while time.monotonic() < end:
        assert server.poll() is None, "the S3 service ended by itself"
        try:
            urllib.request.urlopen(f"{url}/moto-api/", timeout=5).close()
            return
        except OSError:
            time.sleep(0.05)
    raise AssertionError("the S3 service did not begin")
