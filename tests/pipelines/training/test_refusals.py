"""What a training is not begun on, or not gone on with, and what the person is told to do."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from driver import Silence

from ingot.errors import IngotError
from ingot.pipelines import evaluate, pretrain, sft
from ingot.pipelines.artifact import Artifact, Damaged, File, commit, put_json
from ingot.pipelines.sections import Evaluate, Sft
from ingot.pipelines.tokenizer import load_tokenizer
from ingot.pipelines.training.build import read_weights
from ingot.pipelines.training.worker import is_worth_repeating
from ingot.pipelines.units import Workspace

if TYPE_CHECKING:
    from conftest import SmallTraining


@pytest.fixture(scope="module")
def checkpoint(small_training: SmallTraining) -> Artifact:
    """What the pretrain stage commits."""
    key = "artifacts/pretrain/for-refusals"
    small_training.train_here(key)
    record = json.loads(small_training.store.read(f"{key}/trained.json"))
    files = {name: File.from_json(entry) for name, entry in record["files"].items()}
    files |= small_training.tokenizer.files
    return commit(small_training.store, key, "pretrain", "for-refusals", files, {}, {})


@pytest.fixture(scope="module")
def other_tokenizer(small_training: SmallTraining) -> Artifact:
    """As large, and two of its tokens changed places."""
    store, tokenizer = small_training.store, small_training.tokenizer
    body = tokenizer.json("tokenizer.json")
    words = {id: word for word, id in body["model"]["vocab"].items()}
    body["model"]["vocab"] |= {words[400]: 401, words[401]: 400}
    files = {**tokenizer.files, "tokenizer.json": put_json(store, body)}
    return commit(store, "artifacts/tokenizer/other", "tokenizer", "other", files, {}, {})


def workspace(small_training: SmallTraining, name: str) -> Workspace:
    return Workspace(small_training.store, f"artifacts/{name}", Silence())


def test_a_shard_whose_bytes_were_altered_is_named_with_the_mend(small_training: SmallTraining) -> None:
    store, tokens = small_training.store, small_training.tokens
    name = tokens.names("train/")[0]
    [piece] = tokens.files[name].pieces
    path = Path(store.uri) / piece.key
    whole = path.read_bytes()
    path.chmod(0o644)
    path.write_bytes(bytes([whole[0] ^ 1]) + whole[1:])
    try:
        mend = rf"{tokens.key}/{name} is damaged: its object {piece.key} was altered; restore the object, or"
        with pytest.raises(Damaged, match=mend) as raised:
            small_training.train_here("artifacts/pretrain/altered-shard")
    finally:
        path.write_bytes(whole)
    assert not is_worth_repeating(raised.value)


def test_shards_of_another_tokenizer_are_refused(
    small_training: SmallTraining, other_tokenizer: Artifact
) -> None:
    tokens = small_training.tokens
    assert load_tokenizer(other_tokenizer).vocabulary == load_tokenizer(small_training.tokenizer).vocabulary
    inputs = {"tokens": tokens, "tokenizer": other_tokenizer}
    mend = rf"{tokens.key} was made with another tokenizer .* than {other_tokenizer.key} .*; give the"
    with pytest.raises(IngotError, match=mend):
        pretrain.run(workspace(small_training, "pretrain/other-tokenizer"), small_training.section(), inputs)


def test_a_checkpoint_of_another_tokenizer_is_refused(
    small_training: SmallTraining, other_tokenizer: Artifact, checkpoint: Artifact
) -> None:
    mend = rf"{checkpoint.key} was made with another tokenizer .* than {other_tokenizer.key} .*; give the tok"
    with pytest.raises(IngotError, match=mend):
        sft.run(
            workspace(small_training, "sft/other-tokenizer"),
            Sft(steps=20, learning_rate=0.1),
            {"pretrain": checkpoint, "tokenizer": other_tokenizer},
        )
    with pytest.raises(IngotError, match=mend):
        evaluate.run(
            workspace(small_training, "evaluate/other-tokenizer"),
            Evaluate(),
            {"checkpoint": checkpoint, "tokens": small_training.tokens, "tokenizer": other_tokenizer},
        )


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"architectures": ["GPT2LMHeadModel"]}, "architectures: ['GPT2LMHeadModel'] is not one of Llama"),
        ({"hidden_act": "gelu"}, "hidden_act: 'gelu' is not supported, only 'silu' is"),
    ],
)
def test_fine_tuning_a_checkpoint_of_another_architecture_is_refused_before_any_work(
    small_training: SmallTraining, checkpoint: Artifact, changed: dict[str, Any], said: str
) -> None:
    store, key = small_training.store, "artifacts/pretrain/other-architecture-" + "-".join(changed)
    config = put_json(store, checkpoint.json("config.json") | changed)
    other = commit(store, key, "pretrain", "other", {**checkpoint.files, "config.json": config}, {}, {})
    with pytest.raises(IngotError, match=re.escape(f"{key}/config.json: {said}")):
        sft.run(
            workspace(small_training, "sft/other-architecture"),
            Sft(steps=20, learning_rate=0.1),
            {"pretrain": other, "tokenizer": small_training.tokenizer},
        )


def test_weights_that_do_not_fit_their_configuration_are_refused(
    small_training: SmallTraining, checkpoint: Artifact
) -> None:
    store, key = small_training.store, "artifacts/pretrain/wider"
    config = put_json(store, checkpoint.json("config.json") | {"intermediate_size": 96})
    commit(store, key, "pretrain", "wider", {**checkpoint.files, "config.json": config}, {}, {})
    said = rf"{key}: tensors do not fit the configuration: .*down.weight is \(32, 64\), not \(32, 96\)"
    with pytest.raises(IngotError, match=said):
        read_weights(store, key)


@pytest.mark.parametrize(
    ("model", "said"),
    [
        ({"hidden": 96}, "blocks.0.feed_forward.gate.weight, [64, 32] there and [96, 32] in this model"),
        ({"layers": 3}, "blocks.2.attention_norm.weight, missing there and [32] in this model"),
        ({"layers": 1}, "blocks.1.attention.key.weight, [16, 32] there and missing in this model"),
    ],
)
def test_going_on_from_a_checkpoint_of_another_model_is_refused(
    small_training: SmallTraining, checkpoint: Artifact, model: dict[str, int], said: str
) -> None:
    key, store = checkpoint.key, small_training.store
    trained = store.read(f"{key}/trained.json")
    store.delete(f"{key}/trained.json")
    shape = small_training.section().model.model_dump() | model
    try:
        with pytest.raises(IngotError, match=re.escape(said)) as raised:
            small_training.train_here(key, model=shape)
    finally:
        store.create(f"{key}/trained.json", trained)
    assert f"{key}/checkpoints/00000020 is a checkpoint of another architecture" in str(raised.value)
    assert str(raised.value).endswith(f"or delete all below {key}/checkpoints/ to begin anew")
    assert not is_worth_repeating(raised.value)
