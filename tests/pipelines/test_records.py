"""Whatever stands in the store, a reader gets what it asked for, or one error that names the object."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ingot.errors import IngotError
from ingot.pipelines import records
from ingot.pipelines.artifact import (
    Artifact,
    Damaged,
    File,
    canonical_digest,
    commit,
    digest_of,
    load,
    put_file,
)
from ingot.pipelines.records import read_object, wrong_names
from ingot.pipelines.registry import list_versions, publish, resolve
from ingot.pipelines.runs import artifact_keys, has_ended, show_run
from ingot.pipelines.store import LocalStore, StoreError
from ingot.pipelines.units import Unit, Workspace
from ingot.services.serve.weights import fetch_weights

KEY = "artifacts/sft/0123"
WRONG_NAMES = [
    "../outside",
    "a/../../outside",
    "a/../b",
    "/etc/outside",
    "./a",
    "a//b",
    "a/",
    "",
    ".",
    "..",
    "a\\..\\b",
    "a\0b",
    "a\nb",
    "a\x1bb",
    "a\u202eb",
    "a\ud800b",
    "x" * 256,
    "/".join(["y" * 200] * 6),
]
HOSTILE = [
    b"",
    b"{",
    b"[" * 100_000,
    b'{"a":' * 900 + b"1" + b"}" * 900,
    b'{"a": ' + b"[" * 100 + b"]" * 100 + b"}",
    b"\xff\xfe{}",
    b"1" * 10_000,
    b"[]",
    b"null",
    b'"text"',
    b"{}",
]


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    return LocalStore(str(tmp_path / "store"))


def put(store: LocalStore, key: str, body: Any) -> None:
    store.delete(key)
    store.create(key, body if isinstance(body, bytes) else json.dumps(body).encode())


def manifest(files: dict[str, Any]) -> dict[str, Any]:
    return {
        "stage": "sft",
        "fingerprint": "0123",
        "digest": records_digest(files),
        "files": files,
        "metrics": {},
        "made": {},
    }


def records_digest(files: dict[str, Any]) -> str:
    try:
        return canonical_digest(files)
    except UnicodeEncodeError:
        return "0" * 64


@pytest.mark.parametrize("name", WRONG_NAMES)
def test_a_file_name_that_leads_elsewhere_is_refused_wherever_it_would_be_used(
    store: LocalStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    file = put_file(store, b"from outside")
    put(store, f"{KEY}/manifest.json", manifest({"good": file.to_json(), name: file.to_json()}))
    with pytest.raises(Damaged, match=r"manifest\.json was altered: the file name"):
        load(store, KEY)
    with pytest.raises(Damaged, match="the file name"):
        Artifact(store, "", "", "", {name: file})
    with pytest.raises(IngotError, match="can't be committed: the file name"):
        commit(store, "artifacts/sft/other", "sft", "other", {name: file}, {}, {})
    assert not store.exists("artifacts/sft/other/manifest.json")
    monkeypatch.setenv("INGOT_CACHE", str(tmp_path / "cache"))
    put(store, "models/m/000001.json", {**version_of(store, KEY), "weights": "0" * 64})
    with pytest.raises(Damaged):
        fetch_weights(resolve(store, "m").artifact(store))
    outside = [path for path in tmp_path.rglob("*") if path.is_file() and store.root not in path.parents]
    assert outside == []


def version_of(store: LocalStore, checkpoint: str) -> dict[str, Any]:
    return {
        "name": "m",
        "version": 1,
        "checkpoint": checkpoint,
        "weights": "0" * 64,
        "evaluation": None,
        "run": "r",
        "at": 1.5,
    }


def test_a_file_where_another_needs_a_folder_is_refused() -> None:
    assert wrong_names(["a/b", "a/c", "ab", "é/ü.json", "with space.txt"]) is None
    assert wrong_names(["a", "a-b", "a/b/c"]) == "'a' is a file, and the folder of 'a/b/c'"
    assert wrong_names(["x/y/z", "x/y"]) == "'x/y' is a file, and the folder of 'x/y/z'"


def test_many_names_take_no_longer_than_they_must() -> None:
    began = time.monotonic()
    assert wrong_names(f"shards/{number}.bin" for number in range(100_000)) is None
    assert time.monotonic() - began < 5


@pytest.mark.parametrize("body", HOSTILE, ids=range(len(HOSTILE)))
@pytest.mark.parametrize(
    ("key", "read"),
    [
        (f"{KEY}/manifest.json", lambda store: load(store, KEY)),
        ("models/m/000001.json", lambda store: resolve(store, "m")),
        ("models/m/000001.json", list_versions),
        ("runs/r/000001/run.json", lambda store: show_run(store, "r")),
        ("runs/r/000001/run.json", lambda store: has_ended(store, "r")),
        ("runs/r/000001/run.json", lambda store: artifact_keys(store, "r")),
    ],
)
def test_an_object_that_is_something_else_is_damaged(
    store: LocalStore, body: bytes, key: str, read: Callable[[LocalStore], object]
) -> None:
    put(store, key, body)
    with pytest.raises(Damaged) as caught:
        read(store)
    assert f"{store.uri}/{key} was altered: " in str(caught.value)
    assert len(str(caught.value)) < 700


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("checkpoint", 3),
        ("checkpoint", ["a"]),
        ("weights", None),
        ("version", "1"),
        ("version", 2),
        ("name", "another"),
        ("at", "now"),
        ("evaluation", {}),
        ("run", None),
    ],
)
def test_a_model_version_of_wrong_types_is_damaged(store: LocalStore, field: str, value: Any) -> None:
    put(store, "models/m/000001.json", version_of(store, KEY) | {field: value})
    with pytest.raises(Damaged, match=r"models/m/000001\.json was altered"):
        resolve(store, "m")


@pytest.mark.parametrize("field", ["stage", "fingerprint", "digest", "files", "metrics", "made"])
@pytest.mark.parametrize("value", [None, 7, [1], "missing"])
def test_a_manifest_of_wrong_types_is_damaged(store: LocalStore, field: str, value: Any) -> None:
    body = manifest({"a": put_file(store, b"x").to_json()})
    body = {**body, field: value} if value != "missing" else {k: v for k, v in body.items() if k != field}
    put(store, f"{KEY}/manifest.json", body)
    with pytest.raises(Damaged, match=r"manifest\.json was altered"):
        load(store, KEY)


@pytest.mark.parametrize(
    "change",
    [
        {"pieces": 3},
        {"pieces": [3]},
        {"pieces": [{"sha256": "0" * 64}]},
        {"pieces": [{"sha256": "../../../../etc/passwd", "bytes": 5}]},
        {"pieces": [{"sha256": "0" * 64, "bytes": 5, "more": 1}]},
        {"pieces": [{"sha256": "0" * 64, "bytes": -5}]},
        {"pieces": [{"sha256": "0" * 64, "bytes": 10**15}], "bytes": 10**15},
        {"pieces": [{"sha256": ["0"], "bytes": 5}]},
        {"pieces": [{"sha256": "0" * 64, "bytes": 5.0}]},
        {"bytes": "5"},
        {"bytes": 6},
        {"bytes": True},
        {"sha256": "A" * 64},
        {"sha256": None},
        {"rows": "many"},
        {"tokens": -1},
    ],
)
def test_a_file_that_is_listed_wrongly_is_damaged(store: LocalStore, change: dict[str, Any]) -> None:
    good = put_file(store, b"bytes").to_json()
    assert File.from_json(good).to_json() == good
    with pytest.raises(Damaged):
        File.from_json({**good, **change})
    put(store, f"{KEY}/manifest.json", manifest({"a": {**good, **change}}))
    with pytest.raises(Damaged, match=r"manifest\.json was altered"):
        load(store, KEY)


def test_no_more_is_read_than_a_manifest_may_have(store: LocalStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records, "LARGEST", 1000)
    asked = []
    read = LocalStore.read
    monkeypatch.setattr(
        LocalStore,
        "read",
        lambda self, key, start=0, length=None: asked.append(length) or read(self, key, start, length),
    )
    put(store, "large", {"text": "x" * 5000})
    with pytest.raises(Damaged, match="large was altered: it is larger than 1,000 bytes"):
        read_object(store, "large")
    assert asked == [1001]


def test_no_more_of_an_object_is_read_than_its_manifest_says(store: LocalStore) -> None:
    files = {"a": put_file(store, b"bytes")}
    artifact = commit(store, KEY, "sft", "0123", files, {}, {})
    (store.root / files["a"].pieces[0].key).write_bytes(b"bytes" + b"x" * 10_000)
    with pytest.raises(Damaged, match="was altered"):
        artifact.read("a")


def test_a_file_that_the_manifest_does_not_list_is_named(store: LocalStore, tmp_path: Path) -> None:
    artifact = commit(store, KEY, "sft", "0123", {"a": put_file(store, b"bytes")}, {}, {})
    for use in (artifact.read, artifact.json, lambda name: artifact.fetch(tmp_path, [name])):
        with pytest.raises(Damaged, match=r"it lists no file 'state\.json'"):
            use("state.json")


@pytest.mark.parametrize("stages", [None, "abc", [1], ["../x"], {"a": 1}, ["a/b"]])
def test_a_run_whose_stages_are_none_is_damaged(store: LocalStore, stages: Any) -> None:
    put(store, "runs/r/000001/run.json", {"stages": stages, "at": 1, "git": None, "packages": {}})
    for read in (show_run, has_ended, artifact_keys):
        with pytest.raises(Damaged, match=r"run\.json was altered: stages"):
            read(store, "r")


@pytest.mark.parametrize(
    "record",
    [
        {"artifact": "../../../etc"},
        {"artifact": "/etc"},
        {"artifact": 3},
        {"status": None},
        {"seconds": "x"},
        {"digest": None},
    ],
)
def test_a_stage_record_that_is_wrong_is_refused(store: LocalStore, record: dict[str, Any]) -> None:
    put(store, "runs/r/000001/run.json", {"stages": ["sft"], "at": 1, "git": None, "packages": {}})
    good = {"status": "committed", "seconds": 1, "artifact": KEY, "fingerprint": "0123", "digest": "0" * 64}
    put(store, "runs/r/000001/sft.json", {**good, **record})
    with pytest.raises(StoreError):
        show_run(store, "r")


def test_a_folder_that_is_no_attempt_is_passed_over(store: LocalStore) -> None:
    put(store, "runs/r/notes/run.json", {})
    put(store, "runs/r/000001/run.json", {"stages": [], "at": 1, "git": None, "packages": {}})
    assert show_run(store, "r")["attempt"] == 1


@pytest.mark.parametrize("key", ["../outside", "a/../../outside", "/etc/hostname", "a\0b"])
def test_no_key_leads_out_of_a_folder_store(store: LocalStore, tmp_path: Path, key: str) -> None:
    (tmp_path / "outside").write_bytes(b"secret")
    uses: list[Callable[[], object]] = [
        lambda: store.read(key),
        lambda: store.create(key, b"x"),
        lambda: store.exists(key),
        lambda: store.delete(key),
        lambda: list(store.list(f"{key}/")),
    ]
    for use in uses:
        with pytest.raises(StoreError, match="leads out of the store"):
            use()
    assert (tmp_path / "outside").read_bytes() == b"secret"


class Silent:
    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *args, **kwargs: None


@pytest.mark.parametrize("body", HOSTILE[:-1], ids=range(len(HOSTILE) - 1))
def test_a_unit_record_that_is_something_else_is_damaged(store: LocalStore, body: bytes) -> None:
    put(store, f"{KEY}/units/step/one.json", body)
    workspace = Workspace(store, KEY, Silent())  # type: ignore[arg-type]
    with pytest.raises(Damaged, match=r"units/step/one\.json was altered"):
        workspace.run("step", [Unit("one", {})], lambda store, body: {})
    gone = put_file(store, b"gone")
    put(store, f"{KEY}/manifest.json", manifest({"a": gone.to_json()}))
    store.delete(gone.pieces[0].key)
    with pytest.raises(Damaged, match=r"units/step/one\.json was altered"):
        workspace.forget_if_lost()


def test_what_ingot_writes_is_read_back(store: LocalStore) -> None:
    files = {"a/b.json": put_file(store, b"x", rows=3), "a/c": put_file(store, b"")}
    artifact = commit(store, KEY, "sft", "0123", files, {"loss": float("nan"), "deep": [[[]]]}, {"by": "é"})
    assert load(store, KEY).digest == digest_of(files) == artifact.digest  # type: ignore[union-attr]
    version = publish(store, "m", artifact, None, "r")
    assert resolve(store, "m") == version
