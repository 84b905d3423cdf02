"""Pairs, the reference pass, and preference training from it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from shares_of_ranks import samples_of

from ingot.errors import IngotError
from ingot.model import IGNORED, ModelConfig, PreferenceBatch, Transformer, preference_objective
from ingot.model.huggingface import export_folder
from ingot.pipelines.artifact import Artifact, File, commit, digest_of, put_file, put_table, read_table
from ingot.pipelines.conversations import first_functions, make_functions
from ingot.pipelines.pairs import PairDataset, put_pairs
from ingot.pipelines.reference import Scores, read_scores, score_pairs, weights_of
from ingot.pipelines.sections import Preference, Training
from ingot.pipelines.store import Store
from ingot.pipelines.training import launch
from ingot.pipelines.training.group import Group
from ingot.pipelines.training.job import Job
from ingot.pipelines.training.loop import Loop
from ingot.pipelines.units import Workspace

if TYPE_CHECKING:
    from conftest import SmallPath

CONTEXT = 120
SECTION = Preference(steps=1, learning_rate=1e-3, pairs=300)


@dataclass(frozen=True)
class Pairs:
    workspace: Workspace
    file: File
    rows: list[dict[str, list[int]]]
    functions: dict[str, dict[str, list[int]]]  # by id


@pytest.fixture(scope="module")
def pairs(code_path: SmallPath, code_workspace: Callable[[str], Workspace]) -> Pairs:
    workspace = code_workspace(f"sft/functions-{CONTEXT}-1000")
    files, _ = make_functions(workspace, code_path.inputs, CONTEXT, documents=1000)
    functions = first_functions(workspace.store, files, "preference", 300)
    file = put_pairs(workspace.store, functions, CONTEXT, most=300)
    assert file == put_pairs(workspace.store, functions, CONTEXT, most=300)
    rows = read_table(workspace.store, file, "pairs").to_pylist()
    return Pairs(workspace, file, rows, {row["id"]: row for row in functions.to_pylist()})


@pytest.fixture(scope="module")
def scored(pairs: Pairs, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """The files of the pairs' scores under the model of seed 1."""
    _, files = checkpoint(pairs.workspace.store, tmp_path_factory.mktemp("scored"), seed=1)
    [(_, stored)] = score_pairs(pairs.workspace, files, [pairs.file], SECTION)
    return [file.to_json() for file in stored]


def checkpoint(store: Store, folder: Path, seed: int) -> tuple[Transformer, Mapping[str, File]]:
    """A small model with random weights, and its files in the store."""
    config = ModelConfig(vocabulary=400, width=32, layers=1, heads=2, kv_heads=1, hidden=48, context=CONTEXT)
    model = Transformer(config)
    model.init_weights(seed)
    export_folder(config, model.state_dict(), folder, bos=0, eos=0, pad=0)
    return model, {path.name: put_file(store, path.read_bytes()) for path in folder.iterdir()}


def test_the_rejected_answer_is_another_documents_of_about_the_same_length(pairs: Pairs) -> None:
    assert 290 <= len(pairs.rows) <= 300
    for row in pairs.rows:
        chosen, rejected = pairs.functions[row["id"]], pairs.functions[row["rejected_id"]]
        assert (row["prompt"], row["chosen"]) == (chosen["prompt"], chosen["answer"])
        assert row["rejected"] == rejected["answer"] != row["chosen"]
        assert chosen["document"] != rejected["document"]
        assert len(row["prompt"]) + len(row["rejected"]) <= CONTEXT
    gaps = [len(row["chosen"]) - len(row["rejected"]) for row in pairs.rows]
    assert max(map(abs, gaps)) <= 3
    assert sum(gaps) == 0


def test_an_answer_is_rejected_as_often_as_chosen_in_the_pair_beside(pairs: Pairs) -> None:
    chosen, rejected = ([row[side] for row in pairs.rows] for side in ("id", "rejected_id"))
    assert len(set(chosen)) == len(chosen)
    assert rejected[0::2] == chosen[1::2]
    assert rejected[1::2] == chosen[0::2]


@pytest.mark.parametrize("rows", [8, 7])
def test_the_pairs_of_a_couple_are_trained_on_side_by_side(
    pairs: Pairs, scored: list[dict[str, Any]], rows: int
) -> None:
    spec = {"pairs": pairs.file.to_json(), "scores": scored, "rows": rows, "seed": 1}
    dataset = PairDataset(pairs.workspace.store, spec)
    chosen: list[tuple[int, ...]] = []
    for step in range(9):
        [batch] = dataset.share(step, 0, 1, micro_batch=64).batches
        answers = [tuple(row[row != IGNORED].tolist()) for row in batch.targets_BT]
        if rows % 2 == 0:
            assert set(answers[:rows]) == set(answers[rows:])
        chosen += answers[:rows]
    assert len(set(chosen)) == len(chosen)


def test_the_reference_is_computed_once_for_weights_and_pairs(
    pairs: Pairs, tmp_path: Path, code_workspace: Callable[[str], Workspace]
) -> None:
    model, files = checkpoint(pairs.workspace.store, tmp_path, seed=1)
    [(scores, stored)] = score_pairs(pairs.workspace, files, [pairs.file], SECTION)
    store = pairs.workspace.store
    _assert_scores_of(model, pairs, scores)
    objects, records = list(store.list("")), _records(pairs.workspace)
    assert len(records) == 2  # of 256 pairs at most

    elsewhere = code_workspace("preference/other-run")
    [(again, stored_again)] = score_pairs(elsewhere, files, [pairs.file], SECTION)
    assert list(store.list("")) == objects
    assert stored_again == stored
    np.testing.assert_array_equal(again.chosen_P, scores.chosen_P)

    other, other_files = checkpoint(pairs.workspace.store, tmp_path / "other", seed=2)
    [(changed, _)] = score_pairs(pairs.workspace, other_files, [pairs.file], SECTION)
    _assert_scores_of(other, pairs, changed)
    assert len({record.split("/")[1] for record in _records(pairs.workspace)}) == 2
    named = {record.rpartition("/")[2].partition("-")[0] for record in _records(pairs.workspace)}
    assert named == {pairs.file.sha256}


def _records(workspace: Workspace) -> list[str]:
    return [key for key in workspace.store.list("reference/") if key.endswith(".json")]


def _assert_scores_of(model: Transformer, pairs: Pairs, scores: Scores) -> None:
    """Compares with each answer's log-probability under the model, computed alone, for some of the pairs."""
    for index in range(0, len(pairs.rows), 30):
        row = pairs.rows[index]
        for side, sums, tokens in (
            ("chosen", scores.chosen_P, scores.chosen_tokens_P),
            ("rejected", scores.rejected_P, scores.rejected_tokens_P),
        ):
            ids = torch.tensor([row["prompt"] + row[side]])
            logprobs_TV = model(ids[:, :-1]).log_softmax(-1)[0, len(row["prompt"]) - 1 :]
            expected = logprobs_TV.gather(1, torch.tensor(row[side])[:, None]).sum().item()
            assert sums[index] == pytest.approx(expected, rel=1e-5)
            assert tokens[index] == len(row[side])


@pytest.mark.parametrize("average", [True, False])
@pytest.mark.parametrize(("world", "micro_batch"), [(1, 32), (1, 6), (3, 5)])
def test_the_loss_is_ln_2_while_policy_and_reference_are_one(
    pairs: Pairs,
    scored: list[dict[str, Any]],
    tmp_path: Path,
    average: bool,
    world: int,
    micro_batch: int,
) -> None:
    model, _ = checkpoint(pairs.workspace.store, tmp_path, seed=1)
    spec = {"pairs": pairs.file.to_json(), "scores": scored, "rows": 16, "seed": 1}
    dataset = PairDataset(pairs.workspace.store, spec)
    objective = preference_objective(beta=2.0, average=average)
    shares = [dataset.share(5, rank, world, micro_batch) for rank in range(world)]
    batches = [batch for share in shares for batch in share.batches]
    alone = dataset.share(5, 0, 1, micro_batch)
    assert samples_of(shares) == samples_of([alone])
    assert len(samples_of(shares)) == 16
    assert max(len(batch.tokens_BT) for batch in batches) <= max(2, micro_batch)
    losses, weights, _ = zip(*(objective(model, batch) for batch in batches), strict=True)
    assert sum(weights).item() == 16
    assert (sum(losses) / sum(weights)).item() == pytest.approx(math.log(2), abs=1e-4)


def test_every_pair_has_its_own_reference(pairs: Pairs, scored: list[dict[str, Any]]) -> None:
    scores = read_scores(pairs.workspace.store, [File.from_json(entry) for entry in scored])
    count = len(pairs.rows)
    spec = {"pairs": pairs.file.to_json(), "scores": scored, "rows": count, "seed": 1}
    [batch] = PairDataset(pairs.workspace.store, spec).share(0, 0, 1, micro_batch=2 * count).batches
    assert isinstance(batch, PreferenceBatch)
    answers = [tuple(row[row != IGNORED].tolist()) for row in batch.targets_BT]
    sides = ((0, "chosen", batch.reference_chosen_P), (count, "rejected", batch.reference_rejected_P))
    sums = {"chosen": scores.chosen_P, "rejected": scores.rejected_P}
    for first, side, reference in sides:
        expected = {(tuple(row[side]), np.float32(sums[side][index])) for index, row in enumerate(pairs.rows)}
        assert set(zip(answers[first : first + count], reference.numpy(), strict=True)) == expected


@dataclass(frozen=True)
class Aligned:
    pretrained: Artifact
    sft: Artifact
    preference: Artifact


@pytest.fixture(scope="module")
def aligned(
    code_path: SmallPath, run_one_stage: Callable[..., Artifact], tmp_path_factory: pytest.TempPathFactory
) -> Aligned:
    """A small model from random weights through both stages, the first on Ray, with the one worker that is
    the default."""
    store = code_path.store
    _, files = checkpoint(store, tmp_path_factory.mktemp("random"), seed=1)
    pretrained = commit(
        store,
        "artifacts/pretrain/random",
        "pretrain",
        "random",
        {**files, **code_path.tokenizer.files},
        {},
        {},
    )
    settings = {"steps": 60, "learning_rate": 0.01, "batch_conversations": 16, "warmup_steps": 5}
    sft = run_one_stage(store, "sft", settings, {"pretrain": pretrained, **code_path.inputs})
    settings = {"steps": 30, "learning_rate": 0.003, "beta": 2.0, "batch_pairs": 16, "pairs": 480}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(launch, "_fit", train_here)
        preference = run_one_stage(store, "preference", settings, {"sft": sft, **code_path.inputs})
    return Aligned(pretrained, sft, preference)


def train_here(workspace: Workspace, section: Training, job: Job) -> int:
    """What a worker on Ray does: `test_across_nodes.py` has this stage's there."""
    group = Group(0, 1, torch.device("cpu"), section.micro_batch)
    Loop(workspace.store, workspace.key, job, section, group).run()
    return 0


def test_fine_tuning_learns_to_answer(aligned: Aligned) -> None:
    metrics = aligned.sft.metrics
    assert metrics["loss_first"] == pytest.approx(math.log(400), abs=0.3)
    assert metrics["held_out_loss_after"] < 0.5 * metrics["held_out_loss_before"]
    assert metrics["tokens_per_second"] > 0
    # the answers' tokens alone are counted
    conversations = aligned.sft.table("conversations/train.parquet")["answer"].to_pylist()
    assert metrics["conversations"] == len(conversations)
    mean = sum(map(len, conversations)) / len(conversations)
    assert metrics["tokens_trained"] == pytest.approx(60 * 16 * mean, rel=0.1)


def test_checkpoints_are_hugging_face_folders_at_their_roots(aligned: Aligned) -> None:
    expected = {
        "chat_template.jinja",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "special_tokens_map.json",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    for artifact in (aligned.sft, aligned.preference):
        assert {name for name in artifact.files if "/" not in name} == expected
        assert artifact.json("generation_config.json")["eos_token_id"] == [0, 4]


def test_preference_training_begins_at_its_reference_and_learns_the_pairs(aligned: Aligned) -> None:
    metrics = aligned.preference.metrics
    assert metrics["loss_first"] == pytest.approx(math.log(2), abs=1e-4)
    assert metrics["held_out_pairs"] >= 200
    assert metrics["accuracy_after"] >= metrics["accuracy_before"] + 0.05
    assert metrics["margin_after"] > metrics["margin_before"]
    assert metrics["reward_accuracy_after"] > 0.5


def test_the_trainings_and_the_held_out_pairs_share_no_document(aligned: Aligned) -> None:
    functions = {row["id"]: row for row in aligned.sft.table("functions/00000.parquet").to_pylist()}
    used = {"sft": set(aligned.sft.table("conversations/train.parquet")["id"].to_pylist())}
    for name, split in (("train", "preference"), ("held-out", "held-out")):
        table = aligned.preference.table(f"pairs/{name}.parquet")
        used[split] = {*table["id"].to_pylist(), *table["rejected_id"].to_pylist()}
    for split, ids in used.items():
        assert {functions[identity]["split"] for identity in ids} == {split}
    documents = {split: {functions[identity]["document"] for identity in ids} for split, ids in used.items()}
    assert sum(map(len, documents.values())) == len(set().union(*documents.values()))


def test_scores_lie_under_the_digest_of_the_weights_that_gave_them(aligned: Aligned) -> None:
    store = aligned.sft.store
    pairs = aligned.preference.files
    for artifact, names in ((aligned.sft, ("train", "held-out")), (aligned.preference, ("held-out",))):
        weights = digest_of(weights_of(artifact.files))
        records = store.list(f"reference/{weights}/")
        named = {record.rpartition("/")[2].partition("-")[0] for record in records}
        assert named == {pairs[f"pairs/{name}.parquet"].sha256 for name in names}


def test_a_corpus_with_too_few_functions_is_refused_with_the_mend(
    aligned: Aligned, code_path: SmallPath, run_one_stage: Callable[..., Artifact]
) -> None:
    store = code_path.store
    table = aligned.sft.table("functions/00000.parquet").slice(0, 400)
    files = {**aligned.sft.files, "functions/00000.parquet": put_table(store, table)}
    poor = commit(store, "artifacts/sft/poor", "sft", "poor", files, {}, {})
    settings = {"steps": 1, "learning_rate": 0.001}
    with pytest.raises(IngotError, match=r"pairs to hold out, fewer than 200; give the corpus more"):
        run_one_stage(store, "preference", settings, {"sft": poor, **code_path.inputs})


def test_accuracy_compares_means_over_tokens() -> None:
    scores = Scores(np.array([-10.0, -10.0]), np.array([-6.0, -12.0]), np.array([10, 2]), np.array([4, 2]))
    assert scores.margins_P.tolist() == [0.5, 1.0]
    assert scores.accuracy == 1.0
