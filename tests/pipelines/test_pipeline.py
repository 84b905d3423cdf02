"""What is committed is found again; what a changed recipe or source changes is made anew, and no more."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ingot.errors import IngotError, UsageError
from ingot.pipelines import corpus as corpus_stage
from ingot.pipelines.pipeline import Made, run_stages
from ingot.pipelines.recipe import Recipe
from ingot.pipelines.runs import Fenced, begin_attempt, show_run
from ingot.pipelines.store import LocalStore

STAGES = ["corpus", "dedup"]


class Never:
    """Where joining a cluster would be a mistake."""

    def __call__(self) -> None:
        raise AssertionError("everything is committed: no cluster is needed")


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    folder = tmp_path / "texts"
    folder.mkdir()
    for number in range(4):
        (folder / f"{number}.txt").write_text(f"text {number} " * 20)
    return folder


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    return LocalStore(str(tmp_path / "store"))


def recipe(texts: Path, **corpus: Any) -> Recipe:
    source = {"source": "files", "name": "texts", "path": str(texts)}
    return Recipe.model_validate({"name": "run", "workers": 2, "corpus": {"sources": [source], **corpus}})


def run(recipe: Recipe, store: LocalStore, recorder: Any, connect: Any, stages: list[str]) -> dict[str, Made]:
    attempt = begin_attempt(store, recipe, stages)
    return run_stages(recipe, store, attempt, recorder, stages, connect)


def test_what_is_committed_is_not_made_again(
    ray_local: None, texts: Path, store: LocalStore, recorder: Any
) -> None:
    first = run(recipe(texts), store, recorder, lambda: None, STAGES)
    assert [made.skipped for made in first.values()] == [False, False]
    second = run(recipe(texts), store, recorder, Never(), STAGES)
    assert [made.skipped for made in second.values()] == [True, True]
    assert [first[stage].artifact.digest for stage in STAGES] == [
        second[stage].artifact.digest for stage in STAGES
    ]
    third = run(recipe(texts, bad_records="quarantine"), store, recorder, Never(), STAGES)
    assert all(made.skipped for made in third.values())
    assert [stage["status"] for stage in show_run(store, "run")["stages"]] == ["skipped", "skipped"]


def test_a_manifest_tells_where_its_artifact_came_from(
    ray_local: None, texts: Path, store: LocalStore, recorder: Any
) -> None:
    made = run(recipe(texts), store, recorder, lambda: None, STAGES)
    corpus, dedup = made["corpus"].artifact, made["dedup"].artifact
    assert dedup.made["inputs"] == {"corpus": {"key": corpus.key, "digest": corpus.digest}}
    assert dedup.made["section"]["threshold"] == 0.8
    assert corpus.made["run"] == "run"
    assert corpus.made["seconds"] > 0


def test_room_for_a_training_is_looked_for_before_the_work_on_data(
    ray_local: None, texts: Path, store: LocalStore, recorder: Any
) -> None:
    stages = [*STAGES, "tokenizer", "tokens", "pretrain"]
    pretrain = {"steps": 1, "learning_rate": 0.1, "workers": 9}
    large = Recipe.model_validate({**recipe(texts).model_dump(), "pretrain": pretrain})
    with pytest.raises(UsageError, match="pretrain: 9 workers of 1 CPU each need more than the 2 CPUs here"):
        run(large, store, recorder, lambda: None, stages)
    assert list(store.list("artifacts/")) == []


def test_an_attempt_that_is_fenced_off_commits_nothing(
    ray_local: None, texts: Path, store: LocalStore, recorder: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next attempt begins while a stage is at work: what that made stays, its manifest is not written."""
    first = begin_attempt(store, recipe(texts), STAGES)
    read = corpus_stage.run

    def run_while_another_begins(*words: Any) -> Any:
        outcome = read(*words)
        begin_attempt(store, recipe(texts), STAGES)
        return outcome

    monkeypatch.setattr(corpus_stage, "run", run_while_another_begins)
    fenced = "run run: attempt 2 has begun, so attempt 1 stops and commits nothing more"
    for _ in range(2):  # the second time before any work
        with pytest.raises(Fenced, match=fenced):
            run_stages(recipe(texts), store, first, recorder, STAGES, lambda: None)
    assert not [key for key in store.list("artifacts/") if key.endswith("/manifest.json")]
    assert [told for told in recorder.told if told[0] == "step"] == [("step", "read", 1)]
    monkeypatch.undo()
    made = run(recipe(texts), store, recorder, lambda: None, STAGES)
    assert not any(each.skipped for each in made.values())


def test_a_changed_source_or_setting_makes_another_artifact(
    ray_local: None, texts: Path, store: LocalStore, recorder: Any
) -> None:
    first = run(recipe(texts), store, recorder, lambda: None, ["corpus"])["corpus"]
    (texts / "0.txt").write_text("changed")
    changed = run(recipe(texts), store, recorder, lambda: None, ["corpus"])["corpus"]
    smaller = run(recipe(texts, unit_bytes=100), store, recorder, lambda: None, ["corpus"])["corpus"]
    assert len({made.artifact.key for made in (first, changed, smaller)}) == 3
    assert not changed.skipped
    (texts / "0.txt").write_text("text 0 " * 20)
    again = run(recipe(texts), store, recorder, Never(), ["corpus"])["corpus"]
    assert again.artifact.key == first.artifact.key


def test_a_failed_stage_is_recorded_and_goes_on_once_mended(
    ray_local: None, texts: Path, store: LocalStore, recorder: Any
) -> None:
    (texts / "bad.txt").write_bytes(b"\xff")
    with pytest.raises(IngotError, match=r"bad\.txt: not UTF-8"):
        run(recipe(texts), store, recorder, lambda: None, STAGES)
    corpus, dedup = show_run(store, "run")["stages"]
    assert (corpus["status"], dedup["status"]) == ("failed", "waiting")
    assert "bad.txt" in corpus["error"]
    made = run(recipe(texts, bad_records="quarantine"), store, recorder, lambda: None, STAGES)
    assert made["corpus"].artifact.metrics["bad"] == 1
