"""A published model on disk: whole, verified, and what other programs load."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch

from ingot.errors import IngotError, UsageError
from ingot.model import Transformer
from ingot.model.huggingface import import_folder
from ingot.pipelines.artifact import Artifact, Damaged, File, commit, put_file
from ingot.pipelines.export import export_model
from ingot.pipelines.registry import ModelVersion, publish
from ingot.pipelines.store import LocalStore, Store
from ingot.pipelines.training.build import tokenizer_files

if TYPE_CHECKING:
    from conftest import SmallTraining

KEY = "artifacts/pretrain/exported"


@pytest.fixture(scope="module")
def checkpoint(small_training: SmallTraining) -> Artifact:
    """Two steps of training, as the stage commits them, and a file that is no part of the model."""
    store = small_training.store
    loop = small_training.train_here(KEY, steps=2, warmup_steps=0)
    trained = json.loads(store.read(f"{KEY}/trained.json"))["files"]
    files = {name: File.from_json(entry) for name, entry in trained.items()}
    files |= tokenizer_files(store, small_training.tokenizer, loop.state.model.config.context)
    files["pairs/train.parquet"] = put_file(store, b"pairs")
    return commit(store, KEY, "pretrain", "exported", files, {}, {})


@pytest.fixture
def version(checkpoint: Artifact) -> ModelVersion:
    return publish(checkpoint.store, "small", checkpoint, None, "run")


def test_transformers_loads_what_the_command_writes(
    version: ModelVersion, checkpoint: Artifact, tmp_path: Path, run_ingot: Any
) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    target = tmp_path / "new" / "small"
    done = run_ingot("models", "export", "small@1", "--to", str(target), "--store", checkpoint.store.uri)
    assert done.returncode == 0, done.stderr
    size = sum(path.stat().st_size for path in target.iterdir())
    assert done.stdout == f"small@1: {len(os.listdir(target))} files, {size:,} bytes, in {target}\n"
    assert sorted(os.listdir(target)) == [name for name in checkpoint.names() if "/" not in name]
    assert os.listdir(target.parent) == ["small"]
    config, weights = import_folder(target)
    ours = Transformer(config)
    ours.load_state_dict(weights)
    theirs, tokenizer = AutoModelForCausalLM.from_pretrained(target), AutoTokenizer.from_pretrained(target)
    assert tokenizer.model_max_length == config.context
    ids = torch.tensor([tokenizer.encode("the quick brown fox")])
    with torch.no_grad():
        torch.testing.assert_close(theirs(ids).logits, ours(ids).float(), rtol=1e-4, atol=1e-4)


def test_a_target_with_something_in_it_is_refused_and_stays(
    version: ModelVersion, checkpoint: Artifact, tmp_path: Path
) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("mine")
    (tmp_path / "link").symlink_to("full")
    for name, why in (("full", "is not empty"), ("link", "is not empty"), ("full/mine", "is a file")):
        with pytest.raises(UsageError, match=f"{name} {why}; name an empty folder"):
            export_model(checkpoint.store, version, tmp_path / name)
    with pytest.raises(IngotError, match=r"can't (write|look)"):
        export_model(checkpoint.store, version, tmp_path / "full" / "mine" / "below")
    assert (tmp_path / "full" / "mine").read_text() == "mine"
    assert sorted(os.listdir(tmp_path)) == ["full", "link"]
    (tmp_path / "empty").mkdir()
    assert "config.json" in export_model(checkpoint.store, version, tmp_path / "empty")
    assert (tmp_path / "empty" / "config.json").exists()


def test_a_damaged_object_leaves_nothing_behind(
    version: ModelVersion, checkpoint: Artifact, tmp_path: Path
) -> None:
    [piece] = checkpoint.files["tokenizer.json"].pieces

    class Altered(LocalStore):
        def read(self, key: str, start: int = 0, length: int | None = None) -> bytes:
            data = super().read(key, start, length)
            return data[:-1] if key == piece.key else data

    store: Store = Altered(checkpoint.store.uri)
    with pytest.raises(Damaged, match=f"{KEY}/tokenizer.json is damaged"):
        export_model(store, version, tmp_path / "target")
    assert os.listdir(tmp_path) == []
