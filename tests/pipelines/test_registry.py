"""Model versions are numbered, never change, and are published once however often that is tried."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from ingot.errors import IngotError, UsageError
from ingot.pipelines.artifact import Artifact, commit, put_file
from ingot.pipelines.registry import list_versions, publish, resolve, versions_of
from ingot.pipelines.store import LocalStore


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    return LocalStore(str(tmp_path))


def checkpoint(store: LocalStore, name: str) -> Artifact:
    files = {"model.safetensors": put_file(store, name.encode())}
    return commit(store, f"artifacts/sft/{name}", "sft", name, files, {}, {})


def test_versions_are_numbered_and_the_newest_is_meant(store: LocalStore) -> None:
    first = publish(store, "tiny", checkpoint(store, "a"), None, "run")
    second = publish(store, "tiny", checkpoint(store, "b"), None, "run")
    other = publish(store, "tiny-2", checkpoint(store, "a"), None, "run")
    assert [first.id, second.id, other.id] == ["tiny@1", "tiny@2", "tiny-2@1"]
    assert resolve(store, "tiny") == second
    assert resolve(store, "tiny@1") == first
    assert list_versions(store) == [first, second, other]
    assert first.artifact(store).read("model.safetensors") == b"a"


def test_publishing_again_gives_the_same_version(store: LocalStore) -> None:
    a = checkpoint(store, "a")
    first = publish(store, "tiny", a, None, "run")
    publish(store, "tiny", checkpoint(store, "b"), None, "run")
    assert publish(store, "tiny", a, None, "another run") == first
    assert publish(store, "tiny", a, checkpoint(store, "evaluation"), "run").version == 3


def test_publishing_at_once_gives_one_version(store: LocalStore) -> None:
    same = checkpoint(store, "same")
    with ThreadPoolExecutor(8) as pool:
        versions = list(pool.map(lambda _: publish(store, "tiny", same, None, "run"), range(8)))
    assert len(versions_of(store, "tiny")) == len(set(versions)) == 1


def test_an_unknown_model_is_answered_with_those_there_are(store: LocalStore) -> None:
    with pytest.raises(UsageError, match="no model tiny; there are: none"):
        resolve(store, "tiny")
    publish(store, "tiny", checkpoint(store, "a"), None, "run")
    with pytest.raises(UsageError, match="no model tiny@7; there are: tiny@1"):
        resolve(store, "tiny@7")
    with pytest.raises(UsageError, match="NAME or NAME@VERSION"):
        resolve(store, "tiny:1")


def test_a_version_whose_checkpoint_is_gone_or_another_says_so(store: LocalStore) -> None:
    version = publish(store, "tiny", checkpoint(store, "a"), None, "run")
    store.delete("artifacts/sft/a/manifest.json")
    with pytest.raises(IngotError, match="tiny@1: its checkpoint artifacts/sft/a is gone"):
        version.artifact(store)
    commit(store, "artifacts/sft/a", "sft", "a", {"m": put_file(store, b"other")}, {}, {})
    with pytest.raises(IngotError, match="was published; run the recipe again"):
        version.artifact(store)
