"""A run's record tells what became of every stage, whatever ended it."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from ingot.errors import IngotError, UsageError
from ingot.pipelines.artifact import Artifact, commit, put_file
from ingot.pipelines.recipe import Recipe
from ingot.pipelines.runs import Fenced, attempts_of, begin_attempt, list_runs, show_run
from ingot.pipelines.store import LocalStore

STAGES = ["corpus", "dedup", "tokenizer"]


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    return LocalStore(str(tmp_path))


def recipe(name: str) -> Recipe:
    return Recipe.model_validate({"name": name, "corpus": {"sources": [{"source": "python-packages"}]}})


def artifact(store: LocalStore, stage: str) -> Artifact:
    files = {"file": put_file(store, stage.encode())}
    return commit(store, f"artifacts/{stage}/f00", stage, "f00", files, {"documents": 3}, {"seconds": 7.0})


def statuses(store: LocalStore, name: str) -> dict[str, str]:
    return {stage["stage"]: stage["status"] for stage in show_run(store, name)["stages"]}


def test_attempts_are_numbered_and_the_last_is_shown(store: LocalStore) -> None:
    begin_attempt(store, recipe("a"), STAGES)
    begin_attempt(store, recipe("a"), STAGES[:1])
    begin_attempt(store, recipe("a.b"), STAGES)
    assert list_runs(store) == ["a", "a.b"]
    assert show_run(store, "a")["attempt"] == 2
    assert statuses(store, "a") == {"corpus": "waiting"}


def test_attempts_that_begin_at_once_get_different_numbers(store: LocalStore) -> None:
    with ThreadPoolExecutor(8) as pool:
        attempts = list(pool.map(lambda _: begin_attempt(store, recipe("a"), STAGES), range(8)))
    assert sorted(attempt.key for attempt in attempts) == [f"runs/a/{number:06d}" for number in range(1, 9)]


def test_a_given_number_is_begun_once(store: LocalStore) -> None:
    assert begin_attempt(store, recipe("a"), STAGES, 3).key == "runs/a/000003"
    with pytest.raises(IngotError, match="attempt 3 has begun elsewhere; submit the run again"):
        begin_attempt(store, recipe("a"), STAGES, 3)
    with pytest.raises(Fenced, match="attempt 3 has begun, so attempt 2 stops"):
        begin_attempt(store, recipe("a"), STAGES, 2)
    assert attempts_of(store, "a") == [3]
    assert begin_attempt(store, recipe("a"), STAGES).number == 4


def test_a_higher_attempt_of_the_same_run_fences_a_lower_one_off(store: LocalStore) -> None:
    first, other = begin_attempt(store, recipe("a"), STAGES), begin_attempt(store, recipe("a.b"), STAGES)
    begin_attempt(store, recipe("a.b"), STAGES).refuse_if_fenced()
    first.refuse_if_fenced()
    begin_attempt(store, recipe("a"), STAGES).refuse_if_fenced()
    for attempt in (first, other):
        with pytest.raises(Fenced, match="attempt 2 has begun, so attempt 1 stops and commits nothing more"):
            attempt.refuse_if_fenced()


def test_every_stage_has_a_status(store: LocalStore) -> None:
    attempt = begin_attempt(store, recipe("a"), STAGES)
    corpus = artifact(store, "corpus")
    attempt.begin("corpus")
    attempt.commit("corpus", corpus, skipped=False, seconds=1.0)
    attempt.begin("dedup")  # and then the driver is killed
    assert statuses(store, "a") == {"corpus": "committed", "dedup": "begun", "tokenizer": "waiting"}
    second = begin_attempt(store, recipe("a"), STAGES)
    second.commit("corpus", corpus, skipped=True, seconds=0.01)
    second.fail("dedup", IngotError("the first line\nthe second"), 2.0)
    shown = show_run(store, "a")
    assert {"run", "store", "attempt", "at", "git", "packages", "stages"} == shown.keys()
    assert shown["stages"][0] == {
        "stage": "corpus",
        "fingerprint": "f00",
        "digest": corpus.digest,
        "status": "skipped",
        "seconds": 7.0,  # what making it took, not what finding it took
        "metrics": {"documents": 3},
    }
    assert shown["stages"][1]["status"] == "failed"
    assert shown["stages"][1]["error"] == "the first line"
    assert json.loads(json.dumps(shown)) == shown


def test_an_interrupted_stage_is_no_failed_one(store: LocalStore) -> None:
    begin_attempt(store, recipe("a"), STAGES).fail("corpus", KeyboardInterrupt(), 1.0)
    assert statuses(store, "a")["corpus"] == "interrupted"


def test_a_run_whose_artifact_was_deleted_can_be_shown(store: LocalStore) -> None:
    attempt = begin_attempt(store, recipe("a"), STAGES)
    corpus = artifact(store, "corpus")
    attempt.commit("corpus", corpus, skipped=False, seconds=1.0)
    store.delete(f"{corpus.key}/manifest.json")
    shown = show_run(store, "a")["stages"][0]
    assert (shown["status"], shown["digest"], shown["metrics"]) == ("deleted", corpus.digest, {})


def test_an_unknown_run_is_answered_with_those_there_are(store: LocalStore) -> None:
    with pytest.raises(UsageError, match="no run 'b'; there are: none"):
        show_run(store, "b")
    begin_attempt(store, recipe("a"), STAGES)
    with pytest.raises(UsageError, match="no run 'b'; there are: a"):
        show_run(store, "b")
