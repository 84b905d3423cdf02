"""Both stores do the same: create once and whole, whoever races, retries or is killed."""

from __future__ import annotations

import json
import pickle
import signal
import subprocess
import sys
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from ingot.errors import UsageError
from ingot.pipelines.store import LocalStore, ObjectMissing, S3Store, Store, StoreError, open_store


@pytest.fixture(params=["folder", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    if request.param == "folder":
        return open_store(str(tmp_path / "store"))
    return open_store(request.getfixturevalue("s3").uri(uuid.uuid4().hex))


def test_an_object_is_created_once_and_never_overwritten(store: Store) -> None:
    assert store.create("a/b.json", b"first")
    assert not store.create("a/b.json", b"second")
    assert store.read("a/b.json") == b"first"


def test_what_was_created_is_there_for_another_opening_of_the_store(store: Store) -> None:
    store.create("a", b"bytes")
    assert open_store(store.uri).read("a") == b"bytes"
    assert pickle.loads(pickle.dumps(store)).read("a") == b"bytes"


def test_a_missing_object_is_named(store: Store) -> None:
    store.create("there", b"")
    assert not store.exists("a/missing")
    with pytest.raises(ObjectMissing, match="a/missing"):
        store.read("a/missing")
    with pytest.raises(ObjectMissing, match="a/missing"):
        store.read("a/missing", 3, 4)


@pytest.mark.parametrize(
    ("start", "length", "expected"),
    [
        (0, None, b"0123456789"),
        (4, None, b"456789"),
        (0, 3, b"012"),
        (8, 5, b"89"),
        (10, None, b""),
        (12, 4, b""),
        (3, 0, b""),
    ],
)
def test_a_range_ends_where_the_object_ends(
    store: Store, start: int, length: int | None, expected: bytes
) -> None:
    store.create("digits", b"0123456789")
    assert store.read("digits", start, length) == expected


def test_an_empty_object_exists(store: Store) -> None:
    assert store.create("empty", b"")
    assert store.exists("empty")
    assert store.read("empty") == b""


def test_keys_are_listed_below_a_prefix_sorted_by_their_bytes(store: Store) -> None:
    keys = ["a/b", "a/b/c", "a/ä", "a.json", "a-1", "b/x", "ab"]
    keys.remove("a/b")  # a folder can't hold a file and a folder of one name, and no stage asks for it
    for key in keys:
        store.create(key, b"")
    assert list(store.list("")) == sorted(keys, key=str.encode)
    assert list(store.list("a/")) == ["a/b/c", "a/ä"]
    assert list(store.list("a")) == ["a-1", "a.json", "a/b/c", "a/ä", "ab"]
    assert list(store.list("nothing/")) == []


def test_deleting_is_final_and_may_be_repeated(store: Store) -> None:
    store.create("a/b", b"1")
    store.delete("a/b")
    store.delete("a/b")
    assert not store.exists("a/b")
    assert store.create("a/b", b"2")


def test_a_big_object_comes_back_whole(store: Store) -> None:
    block = bytes(range(256)) * 4096
    store.create("big", block * 24)  # 25 MB
    assert store.read("big") == block * 24
    assert store.read("big", 23 * len(block) + 1, len(block)) == block[1:]


def test_of_eight_threads_one_creates(store: Store) -> None:
    with ThreadPoolExecutor(8) as pool:
        for number in range(8):
            values = [f"{number}-{thread}".encode() for thread in range(8)]
            won = list(pool.map(lambda value, key=f"race/{number}": store.create(key, value), values))
            assert won.count(True) == 1
            assert store.read(f"race/{number}") == values[won.index(True)]


RACER = """
import json, sys, time
from pathlib import Path
from ingot.pipelines.store import open_store
uri, name, go, keys = sys.argv[1:]
store = open_store(uri)
store.exists("warm")
print("ready", flush=True)
while not Path(go).exists():
    time.sleep(0.001)
print(json.dumps([key for key in range(int(keys)) if store.create(f"race/{key}", name.encode())]))
"""


def test_of_three_processes_one_creates(store: Store, tmp_path: Path) -> None:
    go, keys = tmp_path / "go", 20 if store.shared else 300
    racers = [
        subprocess.Popen(
            [sys.executable, "-c", RACER, store.uri, str(number), str(go), str(keys)],
            stdout=subprocess.PIPE,
            text=True,
        )
        for number in range(3)
    ]
    for racer in racers:
        assert racer.stdout is not None
        assert racer.stdout.readline() == "ready\n"
    go.touch()
    won = [json.loads(racer.communicate(timeout=60)[0]) for racer in racers]
    assert sorted(key for mine in won for key in mine) == list(range(keys))
    for number, mine in enumerate(won):
        assert all(store.read(f"race/{key}") == str(number).encode() for key in mine)


WRITER = """
import sys
from ingot.pipelines.store import open_store
store, turn = open_store(sys.argv[1]), sys.argv[2]
print("ready", flush=True)
for number in range(10_000):
    store.create(f"objects/{turn}-{number}", bytes([number % 251]) * 3_000_000)
"""


def test_a_killed_writer_leaves_no_half_object(tmp_path: Path) -> None:
    store = LocalStore(str(tmp_path))
    for turn in range(8):
        writer = subprocess.Popen(
            [sys.executable, "-c", WRITER, store.uri, str(turn)], stdout=subprocess.PIPE, text=True
        )
        assert writer.stdout is not None
        assert writer.stdout.readline() == "ready\n"
        time.sleep(0.02 + 0.013 * turn)
        writer.kill()
        assert writer.wait() == -signal.SIGKILL
    keys = list(store.list("objects/"))
    assert keys
    for key in keys:
        number = int(key.rpartition("-")[2])
        assert store.read(key) == bytes([number % 251]) * 3_000_000, key


def test_what_a_killed_writer_left_is_no_object(tmp_path: Path) -> None:
    store = LocalStore(str(tmp_path))
    store.create("a/whole.part", b"")
    (tmp_path / "a" / f".{uuid.uuid4().hex}.part").write_bytes(b"half")
    assert list(store.list("")) == ["a/whole.part"]


def test_a_failed_write_leaves_nothing(tmp_path: Path) -> None:
    store = LocalStore(str(tmp_path))
    with pytest.raises(StoreError, match="can't write"):
        store.create("a/" + "x" * 300, b"the name is too long")
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


@pytest.mark.parametrize("kind", ["folder", "s3"])
def test_a_store_that_cannot_be_written_says_what_to_do(
    kind: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    if kind == "folder":
        (tmp_path / "file").touch()
        store, mend = open_store(str(tmp_path / "file" / "store")), "--store"
    else:
        request.getfixturevalue("s3")
        store, mend = open_store("s3://no-such-bucket/x"), "make the bucket"
    with pytest.raises(StoreError, match=mend) as caught:
        store.create("a", b"")
    assert store.uri in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 1


@pytest.mark.parametrize("endpoint", ["http://127.0.0.1:9", "localhost:9000"])
def test_a_service_that_is_not_there_is_one_clear_message(
    endpoint: str, s3: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    with pytest.raises(StoreError, match="check AWS_ENDPOINT_URL") as caught:
        open_store(s3.uri("x")).create("a", b"")
    assert endpoint in str(caught.value)
    assert "\n" not in str(caught.value)


def test_without_credentials_it_says_which_to_set(s3: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nonexistent")
    monkeypatch.setattr("boto3.DEFAULT_SESSION", None)
    with pytest.raises(StoreError, match="AWS_ACCESS_KEY_ID"):
        open_store(s3.uri("x")).create("a", b"")


def test_a_write_whose_answer_was_lost_was_won(s3: Any) -> None:
    store = open_store(s3.uri(uuid.uuid4().hex))
    assert store.create("faults/lost-answer/a", b"mine")
    assert store.read("faults/lost-answer/a") == b"mine"


def test_a_write_in_conflict_with_another_is_tried_again(s3: Any) -> None:
    store = open_store(s3.uri(uuid.uuid4().hex))
    assert store.create("faults/conflict/a", b"mine")
    assert not store.create("faults/conflict/a", b"mine too")


def test_a_broken_download_is_asked_for_again(s3: Any) -> None:
    store = open_store(s3.uri(uuid.uuid4().hex))
    store.create("faults/broken-answer/a", b"0123456789" * 10_000)
    assert store.read("faults/broken-answer/a") == b"0123456789" * 10_000


def test_an_address_that_is_no_store_is_refused() -> None:
    for uri in ("gs://bucket/x", "s3://", "s3:///x"):
        with pytest.raises(UsageError, match="s3://bucket/prefix"):
            open_store(uri)
    assert S3Store("s3://bucket/prefix/").uri == "s3://bucket/prefix"


def test_the_inventory_tells_content_and_notices_change(store: Store, s3: Any) -> None:
    store.create("folder/a.txt", b"one")
    store.create("b.txt", b"three")
    entries = list(store.inventory())
    assert [(entry.key, entry.bytes) for entry in entries] == [("b.txt", 5), ("folder/a.txt", 3)]
    assert store.read_unchanged(entries[0]) == b"three"
    store.delete("b.txt")
    with pytest.raises(StoreError, match="not what it was"):
        store.read_unchanged(entries[0])
    store.create("b.txt", b"other")
    with pytest.raises(StoreError, match="not what it was"):
        store.read_unchanged(entries[0])


def test_an_inventory_of_no_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such folder"):
        list(LocalStore(str(tmp_path / "none")).inventory())
