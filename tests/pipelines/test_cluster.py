"""What Ray says is not mixed into what a run shows."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

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
