"""What Ray says is not mixed into what a run shows."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import psutil
import pytest
from processes import started, wait_until

from ingot.errors import IngotError
from ingot.pipelines.cluster import cluster, obituaries_aside
from ingot.pipelines.store import LocalStore


def test_what_ray_prints_of_a_lost_node_goes_to_a_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with obituaries_aside(str(tmp_path)):
        listener = threading.Thread(target=print, args=("raylet",), name="ray_listen_error_messages")
        listener.start()
        listener.join()
        print("ours")
    print("after")
    assert capsys.readouterr().out == "ours\nafter\n"
    assert (tmp_path / f"ingot-{os.getpid()}.out").read_text() == "raylet\n"


def test_ray_prints_it_in_a_thread_of_that_name(ray_local: None) -> None:
    assert "ray_listen_error_messages" in [thread.name for thread in threading.enumerate()]


@pytest.mark.parametrize(
    "error",
    [Exception("The current node timed out during startup.\nMore."), TimeoutError(""), RuntimeError("\n")],
)
def test_a_ray_that_does_not_start_is_one_line(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray

    def init(*_: object, **__: object) -> None:
        raise error

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(ray, "init", init)
    with (
        pytest.raises(IngotError, match=r"^Ray at this machine: .+; check RAY_ADDRESS") as caught,
        cluster(LocalStore(str(tmp_path))),
    ):
        pass
    assert "\n" not in str(caught.value)


DRIVER = """
import sys
from ingot.pipelines.cluster import cluster
from ingot.pipelines.store import LocalStore
from ingot.services.running import end_on_signals
end_on_signals()
print("starting", flush=True)
with cluster(LocalStore(sys.argv[1])):
    sys.exit("not interrupted")
"""


def test_a_signal_while_ray_starts_ends_what_has_started(tmp_path: Path) -> None:
    with tempfile.TemporaryDirectory(prefix="t", dir="/tmp", ignore_cleanup_errors=True) as root:
        command = [sys.executable, "-c", DRIVER, str(tmp_path)]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        with started(command, env={**os.environ, "TMPDIR": root}, **pipes) as driver:
            assert driver.stdout.readline() == "starting\n"
            process = psutil.Process(driver.pid)
            wait_until(lambda: "gcs_server" in [child.name() for child in process.children()])
            family = process.children(recursive=True)
            driver.terminate()
            _, told = driver.communicate(timeout=60)
            assert "KeyboardInterrupt" in told
            _, alive = psutil.wait_procs(family, timeout=10)
            assert [str(one) for one in alive if one.status() != psutil.STATUS_ZOMBIE] == []
            assert os.listdir(root) == []
