import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from processes import started

from ingot.pipelines.scratch import scratch_folder

OWNER = """
import sys
from ingot.pipelines.scratch import scratch_folder
with scratch_folder() as folder:
    print(folder, flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def root(monkeypatch) -> Path:
    """A temporary folder with a path as short as the machine's own."""
    with tempfile.TemporaryDirectory(prefix="t", dir="/tmp") as folder:
        monkeypatch.setattr(tempfile, "tempdir", folder)
        monkeypatch.setenv("TMPDIR", folder)
        yield Path(folder)


def owner():
    return started([sys.executable, "-c", OWNER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def fail(folder: Path) -> None:
    (folder / "log").write_text("why")
    raise ValueError("failed")


def left(root: Path) -> list[Path]:
    return list(root.iterdir())


def test_it_lasts_for_the_block_and_is_named_to_children(root):
    with scratch_folder() as folder:
        assert folder.parent == root
        assert os.environ["TMPDIR"] == str(folder)
        (folder / "pymp-x").mkdir()
        (folder / "pymp-x" / "listener").write_text("")
    assert os.environ["TMPDIR"] == str(root)
    assert left(root) == []


def test_an_interrupt_leaves_nothing(root):
    with pytest.raises(KeyboardInterrupt), scratch_folder():
        raise KeyboardInterrupt
    assert left(root) == []


def test_a_failure_keeps_the_logs_until_the_next_start(root):
    with pytest.raises(ValueError, match="failed"), scratch_folder() as failed:
        fail(failed)
    assert (failed / "log").read_text() == "why"
    with scratch_folder():
        assert not failed.exists()
    assert left(root) == []


def test_what_a_killed_owner_left_is_removed_at_the_next_start(root):
    with owner() as process:
        folder = Path(process.stdout.readline().strip())
        assert folder.parent == root
        process.kill()
        process.wait()
        assert folder.exists()
        with scratch_folder():
            assert not folder.exists()


def test_the_folder_of_a_living_owner_stays(root):
    with owner() as process:
        folder = Path(process.stdout.readline().strip())
        with scratch_folder():
            assert folder.exists()
        process.stdin.close()
        process.wait(20)
    assert left(root) == []


def test_other_folders_stay(root):
    (root / "ingot-mine").mkdir()
    with scratch_folder():
        pass
    assert left(root) == [root / "ingot-mine"]


def test_a_long_path_is_not_used(root, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(root / ("long" * 20)))
    with scratch_folder() as folder:
        assert folder.parent == Path("/tmp")
