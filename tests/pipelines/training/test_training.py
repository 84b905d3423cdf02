"""Training on Ray Train: two workers that share one model, the loss of one, what is left in the store."""

from __future__ import annotations

import json
import math
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from killing import kill, wait_for_step

from ingot.errors import IngotError, UsageError
from ingot.model.huggingface import import_folder
from ingot.pipelines.artifact import Artifact, Damaged, load
from ingot.pipelines.pipeline import Outcome
from ingot.pipelines.runs import Attempt, Fenced
from ingot.pipelines.store import StoreError
from ingot.pipelines.tokenizer import load_tokenizer
from ingot.pipelines.training.checkpoint import newest_step
from ingot.pipelines.training.evaluation import bits_per_byte, held_out_rows, unigram_bits_per_byte
from ingot.pipelines.training.group import Group
from ingot.pipelines.training.launch import refuse_too_many
from ingot.pipelines.training.log import read_log
from ingot.pipelines.training.loop import Loop
from ingot.pipelines.training.show import Show
from ingot.pipelines.training.worker import is_worth_repeating

if TYPE_CHECKING:
    from conftest import Recorder, SmallTraining

ALONE = "artifacts/pretrain/one-worker"


@pytest.fixture(scope="module")
def alone(small_training: SmallTraining) -> Loop:
    """One worker without FSDP, 20 steps; its checkpoints stay."""
    return small_training.train_here(ALONE)


def losses(small_training: SmallTraining, key: str) -> list[float]:
    return [line["loss"] for line in read_log(small_training.store, key)]


def test_two_workers_hold_half_of_the_model_each(uninterrupted: Outcome) -> None:
    metrics = uninterrupted.metrics
    assert metrics["world_size"] == 2
    assert [worker["rank"] for worker in metrics["workers"]] == [0, 1]
    assert len({worker["pid"] for worker in metrics["workers"]}) == 2
    for worker in metrics["workers"]:
        assert worker["sharded"]
        assert worker["parameters"] == metrics["parameters"]
        assert 0 < worker["parameters_here"] < 0.6 * worker["parameters"]
    assert sum(worker["parameters_here"] for worker in metrics["workers"]) == metrics["parameters"]


def test_two_sharded_workers_see_the_losses_of_one_whole(
    uninterrupted: Outcome, uninterrupted_key: str, alone: Loop, small_training: SmallTraining
) -> None:
    two, one = losses(small_training, uninterrupted_key), losses(small_training, ALONE)
    assert len(two) == len(one) == 20
    assert two == pytest.approx(one, rel=1e-5)
    assert two[-1] < two[0] - 0.5


def test_the_log_says_which_samples_each_step_read(
    uninterrupted: Outcome, uninterrupted_key: str, alone: Loop, small_training: SmallTraining
) -> None:
    expected = [alone.dataset.numbers(range(8 * step, 8 * step + 8)).tolist() for step in range(20)]
    for key in (uninterrupted_key, ALONE):
        assert [line["samples"] for line in read_log(small_training.store, key)] == expected


def test_metrics_say_what_was_trained(uninterrupted: Outcome, small_training: SmallTraining) -> None:
    metrics = uninterrupted.metrics
    assert metrics["steps"] == 20
    assert metrics["tokens_trained"] == 20 * 256
    assert metrics["parameters"] == small_training.section().model.config(512).parameters()
    assert metrics["resumed_from"] == 0
    assert metrics["bits_per_byte_after"] < metrics["bits_per_byte_before"]
    # an untrained model knows nothing: ln(vocabulary) nats a token
    encoder = load_tokenizer(small_training.tokenizer)
    targets = held_out_rows(small_training.tokens, 32, 1000).targets_BT
    sizes = encoder.token_bytes[targets]
    guess = math.log2(encoder.vocabulary) * (sizes > 0).sum() / sizes.sum()
    assert metrics["bits_per_byte_before"] == pytest.approx(guess, rel=0.05)


def test_every_step_is_logged_with_every_digit(
    uninterrupted: Outcome, uninterrupted_key: str, small_training: SmallTraining
) -> None:
    lines = read_log(small_training.store, uninterrupted_key)
    assert [line["step"] for line in lines] == list(range(20))
    assert lines[0]["loss"] == uninterrupted.metrics["loss_first"]
    assert lines[-1]["loss"] == uninterrupted.metrics["loss_last"]
    assert {line["tokens"] for line in lines} == {256}
    assert lines[0]["learning_rate"] == pytest.approx(0.005)
    assert max(line["learning_rate"] for line in lines) == pytest.approx(0.01)
    assert all({"gradient_norm", "seconds", "samples", "attempt"} <= line.keys() for line in lines)


def test_the_model_is_a_folder_that_stock_code_reads(
    uninterrupted: Outcome, small_training: SmallTraining, tmp_path: Path
) -> None:
    Artifact(small_training.store, "model", "", "", uninterrupted.files).fetch(tmp_path)
    config, weights = import_folder(tmp_path)
    assert config == small_training.section().model.config(512)
    assert sum(tensor.numel() for tensor in weights.values()) == config.parameters()
    ends = json.loads((tmp_path / "generation_config.json").read_text())
    encoder = load_tokenizer(small_training.tokenizer)
    assert ends["eos_token_id"] == [encoder.end_of_text, encoder.stop]


def test_what_is_trained_is_not_trained_again(
    uninterrupted: Outcome, uninterrupted_key: str, small_training: SmallTraining, recorder: Recorder
) -> None:
    again = small_training.train(uninterrupted_key, recorder)
    assert again == uninterrupted
    assert not recorder.told


@pytest.mark.long
def test_a_killed_worker_costs_the_steps_since_the_last_checkpoint_and_nothing_else(
    uninterrupted: Outcome, uninterrupted_key: str, small_training: SmallTraining, recorder: Recorder
) -> None:
    key, gate, store = "artifacts/pretrain/worker-killed", "gates/worker", small_training.store
    seen: dict[str, Any] = {}

    def kill_one() -> None:
        seen["before"] = wait_for_step(store, key, 10)
        worker = json.loads(store.read(f"{key}/attempts/000001/worker-00001.json"))
        kill(worker["pid"])
        seen["after"] = newest_step(store, key)
        store.create(gate, b"open")

    killer = threading.Thread(target=kill_one)
    killer.start()
    outcome = small_training.train(key, recorder, gate=gate)
    killer.join()
    assert (seen["before"], seen["after"]) == (10, 10)
    assert outcome.metrics["attempts"] == 2
    assert outcome.metrics["resumed_from"] == 10
    assert outcome.files == uninterrupted.files
    assert losses(small_training, key) == losses(small_training, uninterrupted_key)
    # Attempt 1 had come to step 12 at most; what it had committed was not done again.
    chunks = [name.rpartition("/")[2] for name in store.list(f"{key}/log/")]
    assert min(chunk for chunk in chunks if chunk.startswith("000002")) == "000002-00000010.jsonl"
    assert [told[1] for told in recorder.told if told[0] == "step"] == ["train"]
    assert sum(told[1] for told in recorder.told if told[0] == "advance") == 20
    again = outcome.metrics["steps_repeated"]
    assert 0 <= again <= 2
    words = {0: "no step is", 1: "1 step is", 2: "2 steps are"}[again]
    line = f"  attempt 2: 2 workers go on at step 10 of 20, {words} taken again"
    assert [told[1] for told in recorder.told if told[0] == "say" and "attempt" in told[1]] == [line]


@pytest.mark.parametrize("step", [7, 10])  # 10 is saved anyway
def test_workers_that_are_to_pause_save_and_wait_and_go_on_as_if_nothing_had_been(
    alone: Loop, small_training: SmallTraining, step: int
) -> None:
    key, store = f"artifacts/pretrain/paused-{step}", small_training.store
    told: list[dict[str, Any]] = []
    waited: list[int | None] = []

    def room() -> int:
        if told[-1]["kind"] == "paused":
            waited.append(newest_step(store, key))
        steps = [message["step"] for message in told if message["kind"] == "step"]
        return 2 if steps[-1] == step and len(waited) < 3 else 0

    small_training.train_here(key, tell=told.append, room=room, log_every=20)
    assert [message for message in told if message["kind"] == "paused"] == [
        {"kind": "paused", "step": step, "room": 2}
    ]
    assert waited == [step] * 3
    assert losses(small_training, key) == losses(small_training, ALONE)
    chunks = [int(name[-14:-6]) for name in store.list(f"{key}/log/")]
    assert chunks == sorted({0, 5, 10, 15} | {step})


@pytest.mark.parametrize(
    "harm",
    [
        "weights missing",
        *(pytest.param(f"{file} altered", marks=pytest.mark.long) for file in ("state", "manifest")),
    ],
)
def test_training_continues_from_the_checkpoint_before_a_damaged_one(
    alone: Loop, small_training: SmallTraining, recorder: Recorder, harm: str
) -> None:
    key, store = f"artifacts/pretrain/damaged-{harm.replace(' ', '-')}", small_training.store
    small_training.train_here(key)
    newest = load(store, f"{key}/checkpoints/00000020")
    assert newest is not None
    [weights], [state] = (newest.files[name].pieces for name in newest.names())
    whole = store.read(weights.key)
    trained = json.loads(store.read(f"{key}/trained.json"))
    store.delete(f"{key}/trained.json")
    if harm == "weights missing":
        store.delete(weights.key)
    else:
        path = Path(store.uri) / (state.key if harm == "state altered" else f"{newest.key}/manifest.json")
        path.write_bytes(path.read_bytes()[:-2])
    repaired = small_training.train_here(key, tell=Show(recorder, 20))
    assert repaired.attempt == 2
    [warning] = [told[1] for told in recorder.told if told[0] == "say" and "warning" in told[1]]
    assert "the checkpoint of step 20 is damaged and deleted" in warning
    assert newest.key in warning
    assert warning.endswith("training continues from that of step 15")
    assert losses(small_training, key) == losses(small_training, ALONE)
    assert json.loads(store.read(f"{key}/trained.json"))["files"] == trained["files"]
    assert store.read(weights.key) == whole
    assert load(store, newest.key).json("state.json")["step"] == 20  # type: ignore[union-attr]


def test_training_is_refused_where_every_checkpoint_is_damaged(small_training: SmallTraining) -> None:
    key, store = "artifacts/pretrain/all-damaged", small_training.store
    small_training.train_here(key, steps=4, checkpoint_every=2)
    store.delete(f"{key}/trained.json")
    checkpoints = [load(store, f"{key}/checkpoints/{step:08d}") for step in (2, 4)]
    for each in checkpoints:
        assert each is not None
        store.delete(each.files["state.json"].pieces[0].key)
    with pytest.raises(Damaged, match=r"00000004/state\.json is damaged: .* is missing; restore") as raised:
        small_training.train_here(key, steps=4, checkpoint_every=2)
    assert not is_worth_repeating(raised.value)
    assert newest_step(store, key) == 4


@pytest.mark.long
def test_a_refusal_ends_training_at_once_with_its_words(
    small_training: SmallTraining, recorder: Recorder
) -> None:
    key, store = "artifacts/pretrain/refused", small_training.store
    small_training.train_here(key)
    store.delete(f"{key}/trained.json")
    for step in (15, 20):
        checkpoint = load(store, f"{key}/checkpoints/{step:08d}")
        assert checkpoint is not None
        store.delete(checkpoint.files["state.json"].pieces[0].key)
    with pytest.raises(IngotError, match=r"state\.json is damaged"):
        small_training.train(key, recorder, failures=3)
    assert len({name.split("/")[-2] for name in store.list(f"{key}/attempts/")}) == 2  # here, and once on Ray


def test_a_worker_of_an_attempt_that_is_fenced_off_commits_nothing(small_training: SmallTraining) -> None:
    """Where the driver of the attempt is held or lost, its workers may still be at work."""
    key, store = "artifacts/pretrain/fenced", small_training.store
    store.create("runs/fenced/000002/run.json", b"{}")
    with pytest.raises(Fenced, match="run fenced: attempt 2 has begun, so attempt 1 stops") as raised:
        small_training.train_here(key, Attempt(store, "fenced", 1))
    assert not is_worth_repeating(raised.value)
    assert newest_step(store, key) is None
    assert not store.exists(f"{key}/trained.json")


@pytest.mark.long
def test_a_training_that_is_fenced_off_ends_with_the_reason(
    small_training: SmallTraining, recorder: Recorder, ray_local: None
) -> None:
    key, store = "artifacts/pretrain/fenced-on-ray", small_training.store
    store.create("runs/fenced-on-ray/000002/run.json", b"{}")
    with pytest.raises(IngotError, match="run fenced-on-ray: attempt 2 has begun, so attempt 1 stops"):
        small_training.train(key, recorder, attempt=Attempt(store, "fenced-on-ray", 1), failures=3)
    assert newest_step(store, key) is None
    assert len({name.split("/")[-2] for name in store.list(f"{key}/attempts/")}) == 1


def test_more_workers_than_this_machine_has_room_for_are_refused(
    small_training: SmallTraining, recorder: Recorder, ray_local: None
) -> None:
    refusal = r"pretrain: 4 workers of 1 CPU each need more than the 2 CPUs here; set pretrain.workers"
    with pytest.raises(UsageError, match=refusal):
        refuse_too_many("pretrain", small_training.section(workers=4), recorder.say)


def test_a_cluster_that_may_grow_is_waited_for(
    small_training: SmallTraining, recorder: Recorder, ray_local: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "head:6379")
    refuse_too_many("pretrain", small_training.section(workers=2), recorder.say)
    assert not recorder.told
    refuse_too_many("pretrain", small_training.section(workers=2, gpus_per_worker=1), recorder.say)
    assert "2 workers of 1 GPU each need more than the 0 GPUs of the cluster: it will" in str(recorder.told)


def test_only_what_may_pass_is_repeated() -> None:
    assert is_worth_repeating(StoreError("can't be reached"))
    assert is_worth_repeating(RuntimeError("Connection closed by peer"))
    for error in (Damaged("x"), IngotError("x"), FloatingPointError("x"), KeyError("x"), TypeError("x")):
        assert not is_worth_repeating(error)


def test_bits_per_byte_is_that_of_one_row_after_the_other(alone: Loop, small_training: SmallTraining) -> None:
    spec = {**small_training.job().evaluation.spec, "evaluate_tokens": 3000}  # type: ignore[union-attr]
    model, encoder = alone.state.model, load_tokenizer(small_training.tokenizer)
    rows = held_out_rows(small_training.tokens, 32, 3000)
    assert len(rows.tokens_BT) == math.ceil(3000 / 32)
    nats, size = 0.0, 0
    for tokens, targets in zip(rows.tokens_BT, rows.targets_BT, strict=True):
        with torch.no_grad():
            scores = model(torch.tensor(tokens[None])).log_softmax(dim=-1)[0]
        for position, target in enumerate(targets):
            if encoder.bytes_of[target]:
                nats -= float(scores[position, target])
                size += len(encoder.bytes_of[target])
    measured = bits_per_byte(model, small_training.store, spec, Group(0, 1, torch.device("cpu"), 5))
    assert measured["bits_per_byte"] == pytest.approx(nats / math.log(2) / size, rel=1e-5)
    assert (rows.targets_BT == encoder.end_of_text).any()


def test_the_unigram_figure_is_the_entropy_of_the_targets() -> None:
    targets = np.array([[1, 1, 2, 0], [1, 1, 3, 0]])  # 0 is special
    sizes = np.array([0, 1, 2, 4, 1, 1, 1, 1, 1, 1])
    bits = 4 * 0.584962500721156 + 2 * math.log2(6)
    assert unigram_bits_per_byte(targets, sizes) == pytest.approx(bits / (4 * 1 + 2 + 4))
