import os
import shutil
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from ingot.errors import IngotError
from ingot.pipelines.artifact import Artifact, Damaged, commit, put_file
from ingot.pipelines.store import LocalStore
from ingot.services.serve.weights import cached_weights, fetch_weights


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("INGOT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "models"


@pytest.fixture
def artifact(tmp_path) -> Artifact:
    store = LocalStore(str(tmp_path / "store"))
    files = {name: put_file(store, os.urandom(1000)) for name in ("config.json", "model.safetensors")}
    return commit(store, f"artifacts/sft/{uuid.uuid4().hex}", "sft", "x", files, {}, {})


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def expected(artifact: Artifact) -> dict[str, bytes]:
    return {name: artifact.read(name) for name in artifact.names()}


def test_the_folder_is_named_by_the_digest(artifact, cache):
    folder = fetch_weights(artifact)
    assert folder == cache / artifact.digest
    assert contents(folder) == expected(artifact)
    assert sorted(path.name for path in cache.iterdir()) == [artifact.digest, f"{artifact.digest}.json"]


def test_what_was_fetched_is_not_fetched_again(artifact):
    folder = fetch_weights(artifact)
    inode = (folder / "config.json").stat().st_ino
    for name in artifact.names():
        artifact.store.delete(artifact.files[name].pieces[0].key)
    assert fetch_weights(artifact) == folder
    assert (folder / "config.json").stat().st_ino == inode


@pytest.mark.parametrize("change", ["alter", "remove", "add"])
def test_a_folder_that_was_changed_is_fetched_again(artifact, change):
    folder = fetch_weights(artifact)
    if change == "alter":
        with open(folder / "model.safetensors", "r+b") as file:
            file.write(b"other bytes")
    elif change == "remove":
        (folder / "config.json").unlink()
    else:
        (folder / "model-2.safetensors").write_bytes(b"a shard of something else")
    assert contents(fetch_weights(artifact)) == expected(artifact)


def test_what_is_cached_is_found_and_verified_without_the_store(artifact, cache):
    assert cached_weights(artifact.digest) is None
    folder = fetch_weights(artifact)
    shutil.rmtree(artifact.store.uri)
    assert cached_weights(artifact.digest) == folder
    with open(folder / "model.safetensors", "r+b") as file:
        file.write(b"other bytes")
    assert cached_weights(artifact.digest) is None


@pytest.mark.parametrize("text", [None, "", "[]", "{}", '{"config.json": {}}', "[" * 100_000])
def test_a_list_that_is_not_the_digests_is_not_believed(artifact, cache, text):
    folder = fetch_weights(artifact)
    listed = cache / f"{artifact.digest}.json"
    listed.unlink() if text is None else listed.write_text(text)
    assert cached_weights(artifact.digest) is None
    assert fetch_weights(artifact) == folder
    assert cached_weights(artifact.digest) == folder


def test_replicas_that_race_end_with_one_whole_folder(artifact, cache):
    with ThreadPoolExecutor(8) as pool:
        folders = set(pool.map(lambda _: fetch_weights(artifact), range(32)))
    assert folders == {cache / artifact.digest}
    assert contents(cache / artifact.digest) == expected(artifact)
    assert sorted(path.name for path in cache.iterdir()) == [artifact.digest, f"{artifact.digest}.json"]


def test_a_damaged_object_leaves_nothing_behind(artifact, cache):
    Path(artifact.store.uri, artifact.files["model.safetensors"].pieces[0].key).write_bytes(b"x")
    with pytest.raises(Damaged, match=r"model\.safetensors is damaged"):
        fetch_weights(artifact)
    assert list(cache.iterdir()) == []


def test_a_cache_that_cannot_be_written_is_named(artifact, cache):
    cache.parent.mkdir()
    cache.write_text("a file where the folder should be")
    with pytest.raises(IngotError, match=r"can't keep the model's weights in .*INGOT_CACHE"):
        fetch_weights(artifact)
