"""Only what lies below a source's folder is read, and a run's output is never its own input."""

from __future__ import annotations

import os
import socket
import uuid
from pathlib import Path
from typing import Any

import pytest

from ingot.errors import IngotError, UsageError
from ingot.pipelines import sources
from ingot.pipelines.corpus import inventory
from ingot.pipelines.sections import Corpus, Files
from ingot.pipelines.store import LocalStore, open_store
from ingot.services.summaries import summary

ELSEWHERE = LocalStore("/nowhere")


def source(path: object, **settings: Any) -> Files:
    return Files(source="files", name="raw", path=str(path), **settings)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with two texts and everything that is not to be read."""
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret.txt").write_text("secret")
    path = tmp_path / "raw"
    (path / "deep").mkdir(parents=True)
    (path / "a.txt").write_text("a")
    (path / "deep" / "b.txt").write_text("b")
    (path / "secret.txt").symlink_to(outside / "secret.txt")
    (path / "folder").symlink_to(outside)
    (path / "loop").symlink_to(path)
    (path / "inside.txt").symlink_to("a.txt")
    (path / "dangling").symlink_to("nothing")
    os.mkfifo(path / "pipe.txt")
    monkeypatch.chdir(path)  # a socket's address is short
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("socket")
    (path / ".env").write_text("TOKEN=secret")
    (path / ".git").mkdir()
    (path / ".git" / "config.txt").write_text("hidden")
    return path


def keys(given: Files) -> list[str]:
    return [entry.key for entry in sources.inventory(given, ELSEWHERE)[0]]


def test_only_regular_files_below_the_folder_are_read(folder: Path, tmp_path: Path) -> None:
    found = inventory(Corpus(sources=[source(folder)]), ELSEWHERE)
    assert [entry["key"] for entry in found["files"]["raw"]] == ["a.txt", "deep/b.txt"]
    assert found["skipped"] == {
        "count": 9,
        "kinds": {"FIFO": 1, "hidden": 2, "socket": 1, "symbolic link": 5},
        "first": [
            "raw: .env (hidden)",
            "raw: .git (hidden)",
            "raw: dangling (symbolic link)",
            "raw: folder (symbolic link)",
            "raw: inside.txt (symbolic link)",
        ],
    }
    metrics = {"bytes_in": 2, "files": 2, "documents_out": 2, "bad": 0, "skipped": found["skipped"]}
    assert "9 skipped: raw: .env (hidden), " in summary("corpus", metrics)
    (tmp_path / "link").symlink_to(folder)  # the folder itself may be named by a link
    assert keys(source(tmp_path / "link")) == ["a.txt", "deep/b.txt"]


def test_hidden_files_are_read_where_that_is_asked_for(folder: Path) -> None:
    assert keys(source(folder, hidden=True)) == [".env", ".git/config.txt", "a.txt", "deep/b.txt"]


def test_hidden_names_are_skipped_below_a_prefix_too(s3: Any) -> None:
    remote = open_store(s3.uri(uuid.uuid4().hex))
    for key in (".env", "a.txt", "deep/.git/x", "deep/.git/y", "deep/b.c/d.txt"):
        remote.create(key, key.encode())
    found, skipped = sources.inventory(source(remote.uri), ELSEWHERE)
    assert [entry.key for entry in found] == ["a.txt", "deep/b.c/d.txt"]
    assert [each.key for each in skipped] == [".env", "deep/.git"]
    assert len(keys(source(remote.uri, hidden=True))) == 5


def test_a_folder_of_skipped_files_alone_says_so(tmp_path: Path) -> None:
    (tmp_path / ".a.txt").write_text("a")
    with pytest.raises(UsageError, match=r"no files at .* but 1 that are skipped: \.a\.txt \(hidden\)"):
        keys(source(tmp_path))


@pytest.mark.parametrize("swapped", ["file", "folder", "fifo"])
def test_what_is_replaced_after_the_listing_is_not_followed(
    folder: Path, tmp_path: Path, swapped: str
) -> None:
    entry = sources.inventory(source(folder), ELSEWHERE)[0][1]
    assert entry.key == "deep/b.txt"
    moved = (folder / "deep").rename(tmp_path / "moved")  # the same bytes, but not below the folder
    if swapped == "folder":
        (folder / "deep").symlink_to(moved)
    else:
        (folder / "deep").mkdir()
        if swapped == "file":
            (folder / "deep" / "b.txt").symlink_to(moved / "b.txt")
        else:
            os.mkfifo(folder / "deep" / "b.txt")
    with pytest.raises(IngotError, match="is not what it was"):
        sources.read_unchanged(source(folder), entry)
