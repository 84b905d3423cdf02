"""An artifact is what its manifest says, byte for byte, and says so when it is not."""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow
import pytest

from ingot.pipelines import artifact as artifacts
from ingot.pipelines.artifact import Artifact, Damaged, commit, digest_of, load, put_file, put_json, put_table
from ingot.pipelines.store import LocalStore

KEY = "artifacts/stage/0123"


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    return LocalStore(str(tmp_path / "store"))


def commit_two_files(store: LocalStore, **made: Any) -> Artifact:
    files = {"a.json": put_json(store, {"x": 1}), "folder/b.bin": put_file(store, b"0123456789" * 10)}
    return commit(store, KEY, "stage", "0123", files, {"figure": 1.5}, made)


def test_without_a_manifest_it_does_not_exist(store: LocalStore) -> None:
    put_file(store, b"bytes")
    assert load(store, KEY) is None


def test_what_is_committed_is_read_back(store: LocalStore) -> None:
    commit_two_files(store, seconds=3)
    artifact = load(store, KEY)
    assert artifact is not None
    assert artifact.names() == ["a.json", "folder/b.bin"]
    assert artifact.names("folder/") == ["folder/b.bin"]
    assert artifact.json("a.json") == {"x": 1}
    assert artifact.read("folder/b.bin") == b"0123456789" * 10
    assert artifact.read_range("folder/b.bin", 8, 4) == b"8901"
    assert artifact.read_range("folder/b.bin", 98, 10) == b"89"
    assert (artifact.metrics, artifact.made["seconds"]) == ({"figure": 1.5}, 3)


def test_the_digest_is_of_the_files_alone(tmp_path: Path) -> None:
    def made(name: str, order: list[str], **when: Any) -> str:
        store = LocalStore(str(tmp_path / name))
        files = {file: put_file(store, file.encode(), tokens=3) for file in order}
        return commit(store, f"artifacts/stage/{name}", "stage", name, files, {"at": name}, when).digest

    first = made("one", ["a", "b", "c"], host="here")
    assert made("two", ["c", "a", "b"], host="there", seconds=9) == first
    assert made("three", ["a", "b"]) != first
    assert made("four", ["a", "b", "d"]) != first


def test_the_digest_is_pinned(store: LocalStore) -> None:
    # whoever changes this makes every artifact in every store unknown
    files = {"a": put_file(store, b"text", rows=1), "b": put_file(store, b"")}
    assert digest_of(files) == "ae674513310e90a37b42e1ce1d4991fb9967bcab149263b170abcad162a5a0a2"


def test_a_table_gives_the_same_bytes_again(store: LocalStore) -> None:
    table = pyarrow.table({"id": ["a", "b"], "number": [1, None]})
    file = put_table(store, table)
    assert file.rows == 2
    assert put_table(store, pyarrow.table({"id": ["a", "b"], "number": [1, None]})) == file
    artifact = commit(store, KEY, "stage", "0123", {"t.parquet": file}, {}, {})
    assert artifact.table("t.parquet").equals(table)
    assert artifact.table("t.parquet", ["number"]).column_names == ["number"]


def test_of_two_writers_one_manifest_stands(store: LocalStore) -> None:
    def write(number: int) -> Artifact:
        files = {"a": put_file(store, str(number).encode())}
        return commit(store, KEY, "stage", "0123", files, {"writer": number}, {})

    with ThreadPoolExecutor(8) as pool:
        seen = list(pool.map(write, range(8)))
    stands = load(store, KEY)
    assert stands is not None
    assert {artifact.digest for artifact in seen} == {stands.digest}
    assert stands.read("a") == str(stands.metrics["writer"]).encode()


# a part that was altered has no digest to tell it by: only the reading of whole files finds that
@pytest.mark.parametrize(
    ("change", "how"),
    [
        (change, how)
        for change in ("missing", "cut", "altered")
        for how in ("read", "fetch", "read_range")
        if (change, how) != ("altered", "read_range")
    ],
)
def test_damage_is_named_with_the_mend(store: LocalStore, tmp_path: Path, change: str, how: str) -> None:
    artifact = commit_two_files(store)
    [piece] = artifact.files["folder/b.bin"].pieces
    path = store.root / piece.key
    path.unlink()
    if change != "missing":
        path.write_bytes(b"0123456789" * 9 + (b"x" * 10 if change == "altered" else b""))
    ways: dict[str, Callable[[], object]] = {
        "read": lambda: artifact.read("folder/b.bin"),
        "read_range": lambda: artifact.read_range("folder/b.bin", 80, 20),
        "fetch": lambda: artifact.fetch(tmp_path / "fetched"),
    }
    with pytest.raises(Damaged) as caught:
        ways[how]()
    message = str(caught.value)
    for part in (store.uri, f"{KEY}/folder/b.bin", piece.key, f"all below {KEY}/", "run again"):
        assert part in message


def test_a_fetched_folder_holds_whole_files_only(store: LocalStore, tmp_path: Path) -> None:
    artifact = commit_two_files(store)
    folder = artifact.fetch(tmp_path / "fetched")
    assert (folder / "folder/b.bin").read_bytes() == b"0123456789" * 10
    artifact.fetch(folder, ["a.json"])  # again is no harm
    (store.root / artifact.files["folder/b.bin"].pieces[0].key).unlink()
    with pytest.raises(Damaged):
        artifact.fetch(tmp_path / "second")
    left = [path.name for path in (tmp_path / "second").rglob("*") if path.is_file()]
    assert left == ["a.json"]


@pytest.mark.parametrize(
    "alter",
    [
        lambda body: json.dumps({**body, "digest": "0" * 64}),
        lambda body: json.dumps({**body, "files": {"a.json": body["files"]["a.json"]}}),
        lambda body: json.dumps(body)[:-30],
        lambda body: json.dumps({"stage": "stage"}),
        lambda body: "[]",
    ],
)
def test_an_altered_manifest_is_no_artifact(store: LocalStore, alter: Any) -> None:
    commit_two_files(store)
    path = store.root / KEY / "manifest.json"
    text = path.read_text()
    path.unlink()
    path.write_text(alter(json.loads(text)))
    with pytest.raises(Damaged, match=r"manifest\.json was altered.*run again"):
        load(store, KEY)


def test_files_are_kept_in_pieces(store: LocalStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(artifacts, "PIECE_BYTES", 7)
    data = bytes(range(100))
    file = put_file(store, data)
    assert [piece.bytes for piece in file.pieces] == [7] * 14 + [2]
    artifact = commit(store, KEY, "stage", "0123", {"a": file, "empty": put_file(store, b"")}, {}, {})
    assert artifact.read("a") == data
    assert artifact.read("empty") == b""
    for start in (0, 3, 7, 50, 97):
        for length in (0, 1, 7, 20, 200):
            assert artifact.read_range("a", start, length) == data[start : start + length]
    monkeypatch.undo()
    assert file.sha256 == put_file(store, data).sha256


def test_equal_bytes_are_stored_once(store: LocalStore) -> None:
    assert put_file(store, b"same") == put_file(store, b"same")
    assert len(list(store.list("objects/"))) == 1
