"""What Ray says is not mixed into what a run shows."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from ingot.pipelines.cluster import obituaries_aside


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
