"""Training on rows that are packed from whole documents, on a mixture, and from S3; and the way back from a
row to its documents."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
import torch
from driver import Silence

from ingot.errors import UsageError
from ingot.pipelines.artifact import Artifact
from ingot.pipelines.places import Places
from ingot.pipelines.pretrain import pretraining
from ingot.pipelines.store import open_store
from ingot.pipelines.training.evaluation import held_out_rows
from ingot.pipelines.training.group import Group
from ingot.pipelines.training.job import Job
from ingot.pipelines.training.lineage import documents_of_sample
from ingot.pipelines.training.log import read_log
from ingot.pipelines.training.loop import Loop
from ingot.pipelines.training.packing import Packed, pack
from ingot.pipelines.units import Workspace

if TYPE_CHECKING:
    from conftest import S3, SmallTraining

KEY, CONTEXT = "artifacts/pretrain/packed", 1024


@pytest.fixture(scope="module")
def packed(small_training: SmallTraining) -> Packed:
    """Of the texts of the corpus some are longer than a row, and some are not."""
    return pack(Workspace(small_training.store, KEY, Silence()), small_training.tokens, CONTEXT)


def section_of(small_training: SmallTraining, **settings: Any) -> Any:
    model = {**small_training.section().model.model_dump(), "context": CONTEXT}
    return small_training.section(
        **{"model": model, "workers": 1, "steps": 4, "batch_tokens": 4 * CONTEXT} | settings
    )


def trained(small_training: SmallTraining, key: str, job: Job, section: Any) -> list[dict[str, Any]]:
    small_training.store.create(f"{key}/job.json", json.dumps(job.to_json()).encode())
    group = Group(0, 1, torch.device("cpu"), section.micro_batch)
    Loop(small_training.store, key, job, section, group).run()
    return read_log(small_training.store, key)


@pytest.fixture(scope="module")
def log(small_training: SmallTraining, packed: Packed) -> list[dict[str, Any]]:
    section = section_of(small_training, packing="best-fit", mask_documents=True)
    job = pretraining(section, small_training.tokens, small_training.tokenizer, packed)
    return trained(small_training, KEY, job, section)


def test_padding_counts_nothing_and_is_told(
    log: list[dict[str, Any]], packed: Packed, small_training: SmallTraining
) -> None:
    documents = [
        row["tokens"] + 1
        for name in small_training.tokens.names("index/")
        for row in small_training.tokens.table(name).to_pylist()
        if row["split"] == "train"
    ]
    assert packed.documents_cut == sum(size > CONTEXT for size in documents) > 0
    assert packed.padding_share == pytest.approx(1 - sum(documents) / (CONTEXT * packed.rows))
    assert 0 < packed.padding_share < 0.5
    assert min(line["tokens"] for line in log) < 4 * CONTEXT


def test_a_sample_of_the_log_leads_to_its_documents(
    log: list[dict[str, Any]], small_training: SmallTraining
) -> None:
    store, tokens = small_training.store, small_training.tokens
    seen = 0
    for line in log:
        parts = [part for sample in line["samples"] for part in documents_of_sample(store, KEY, sample)]
        assert sum(part["stop"] - part["first"] for part in parts) == line["tokens"]
        seen += len(parts)
        for part in parts:
            place = Places(tokens).of(part["document"])
            assert place is not None
            assert (place.shard, place.offset, place.tokens) == (
                part["shard"],
                part["offset"],
                part["tokens"],
            )
            assert part["source"] == "small"
            whole = (part["first"], part["stop"]) == (0, place.tokens + 1)
            assert whole or place.tokens + 1 > CONTEXT
    assert seen > 16  # some rows have several
    with pytest.raises(UsageError, match=r"no sample 100000: the rows of .* are numbered 0 to \d+"):
        documents_of_sample(store, KEY, 100_000)


def test_a_model_is_measured_on_documents_alone_where_it_is_trained_so(small_training: SmallTraining) -> None:
    for masked in (False, True):
        rows = held_out_rows(small_training.tokens, CONTEXT, 1000, masked)
        assert (rows.documents_BT is not None) == masked
    section = section_of(small_training, mask_documents=True)
    job = pretraining(section, small_training.tokens, small_training.tokenizer)
    assert job.evaluation is not None
    assert job.evaluation.spec["mask_documents"]


def test_a_mixture_of_all_there_is_trains(small_training: SmallTraining) -> None:
    section = small_training.section(mix={"small": 1}, steps=4, workers=1)
    job = pretraining(section, small_training.tokens, small_training.tokenizer)
    lines = trained(small_training, "artifacts/pretrain/mixed", job, section)
    assert [line["tokens"] for line in lines] == [256] * 4
    assert len({sample for line in lines for sample in line["samples"]}) == 32  # of the first epoch


def test_from_s3_and_a_folder_come_the_same_losses_whatever_is_kept_or_read_ahead(
    small_training: SmallTraining, s3: S3
) -> None:
    store, found = open_store(s3.uri("loader")), []
    for artifact in (small_training.tokens, small_training.tokenizer):
        copied(artifact, store)
    for place, ahead, kept in ((small_training.store, 1, 10**9), (store, 3, 0), (store, 8, 10**9)):
        section = small_training.section(steps=4, read_ahead=ahead, cache_bytes=kept, workers=1)
        job = pretraining(section, small_training.tokens, small_training.tokenizer)
        key = f"artifacts/pretrain/from-{ahead}-{kept}"
        Loop(place, key, job, section, Group(0, 1, torch.device("cpu"), section.micro_batch)).run()
        found.append([(line["samples"], line["loss"]) for line in read_log(place, key)])
    assert found[0] == found[1] == found[2]


def copied(artifact: Artifact, store: Any) -> None:
    for file in artifact.files.values():
        for piece in file.pieces:
            store.create(piece.key, artifact.store.read(piece.key))
    manifest = f"{artifact.key}/manifest.json"
    store.create(manifest, artifact.store.read(manifest))
