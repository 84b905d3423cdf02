"""From the command line: where a document's tokens are, and which documents a sample is made of."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow
import pytest
from typer.testing import CliRunner

from ingot.pipelines.artifact import File, commit, put_json, put_table
from ingot.pipelines.corpus import document_id
from ingot.pipelines.places import put_run
from ingot.pipelines.shards import put_shard
from ingot.pipelines.store import LocalStore
from ingot.pipelines.training.job import Job, Part, SpecialTokens
from ingot.services.cli import app

IDS = [document_id("books", name, 0) for name in ("a.txt", "b.txt", "c.txt")]
TOKENS = [[5, 6, 7, 0], [8, 0], [9, 10, 11, 12, 13, 14, 0]]  # 0 ends a text; b.txt is held out


@pytest.fixture
def show(tmp_path: Any) -> Callable[..., Any]:
    """`show("--document", ID)`: of a run whose stages are written by hand."""
    store = LocalStore(str(tmp_path))
    documents = {"id": IDS, "path": ["a.txt", "b.txt", "c.txt"], "url": [None] * 3, "text": ["A", "B", "C"]}
    documents |= {"source": ["books"] * 3, "record": [0, 0, 0]}
    bad = {"source": ["books"] * 2, "path": ["d.jsonl", "b.txt"], "record": [7, 1]}
    bad["reason"] = ["line 8 is no JSON object", "the rest is missing"]
    corpus = {"documents/0.parquet": documents, "quarantine/0.parquet": bad}
    made(store, "corpus", {name: put_table(store, pyarrow.table(rows)) for name, rows in corpus.items()})
    kept = pyarrow.table({"id": IDS, "copies": [1, 1, 1]})
    none = pyarrow.table({"id": pyarrow.array([], pyarrow.string())})
    made(
        store,
        "dedup",
        {"kept/0.parquet": put_table(store, kept), "removed/0.parquet": put_table(store, none)},
    )
    train, held_out = (put_shard(store, np.array(part, "<u2")) for part in (TOKENS[0] + TOKENS[2], TOKENS[1]))
    index = {
        "id": IDS,
        "split": ["train", "held-out", "train"],
        "shard": [0, 0, 0],
        "offset": [0, 0, 4],
        "tokens": [3, 1, 6],
    }
    shards = {"train": [["train/00000.bin", 11]], "held-out": [["held-out/00000.bin", 2]]}
    meta = {"dtype": "uint16", "vocabulary": 20, "end_of_text": 0, "shards": shards, "sources": ["books"]}
    tokens = {
        "train/00000.bin": train[0],
        "blocks/train/00000.bin": train[1],
        "held-out/00000.bin": held_out[0],
        "blocks/held-out/00000.bin": held_out[1],
        "index/00000.parquet": put_table(store, pyarrow.table(index)),
        "lookup/00000.bin": File.from_json(put_run(store, IDS, 0, lookups=1)["file"]),
        "meta.json": put_json(store, meta),
    }
    made(store, "tokens", tokens)
    spec = {"tokens": "artifacts/tokens/made", "context": 5, "rows": 1, "seed": 1}
    job = Job(Part("ingot.pipelines.training.tokens:TokenDataset", spec), SpecialTokens(0, (0,), 0))
    store.create("artifacts/pretrain/made/job.json", json.dumps(job.to_json()).encode())
    made(store, "pretrain", {})
    stages = ["corpus", "dedup", "tokens", "pretrain"]
    run = {"run": "demo", "at": 0, "git": None, "packages": {}, "stages": stages}
    store.create("runs/demo/000001/run.json", json.dumps(run).encode())

    def show(*words: str) -> Any:
        return CliRunner().invoke(app, ["runs", "show", "demo", "--store", str(tmp_path), *words])

    return show


def made(store: LocalStore, stage: str, files: dict[str, File]) -> None:
    artifact = commit(store, f"artifacts/{stage}/made", stage, "made", files, {}, {"seconds": 1.0})
    record = {"status": "committed", "seconds": 1.0, "artifact": artifact.key}
    record |= {"fingerprint": "made", "digest": artifact.digest}
    store.create(f"runs/demo/000001/{stage}.json", json.dumps(record).encode())


def test_a_documents_tokens_are_found(show: Callable[..., Any]) -> None:
    said = show("--document", "c.txt").output
    assert "its 6 tokens: in train/00000.bin from 4 on, which is 4 of the train split" in said
    [found] = json.loads(show("--document", IDS[1], "--json").output)
    assert found["kind"] == "kept"
    assert (found["place"]["shard"], found["place"]["offset"]) == ("held-out/00000.bin", 0)


def test_a_sample_leads_to_its_documents(show: Callable[..., Any]) -> None:
    parts = json.loads(show("--sample", "0", "--json").output)
    # tokens 1 to 5: of the first document all but its first token, of the last one the first two
    assert [(part["document"], part["first"], part["stop"]) for part in parts] == [
        (IDS[0], 1, 4),
        (IDS[2], 0, 2),
    ]
    lines = show("--sample", "0").output.splitlines()
    assert IDS[0] in lines[1]
    assert "1–3" in lines[1]


def test_what_no_sample_or_two_questions_are_is_told(show: Callable[..., Any]) -> None:
    assert "no sample 2: the rows of artifacts/pretrain/made are numbered 0 to 1" in str(
        show("--sample", "2").exception
    )
    both = show("--sample", "1", "--document", "x")
    assert "give one of --document, --sample and --quarantine" in str(both.exception)


def test_what_was_not_read_is_shown_with_its_reason(show: Callable[..., Any]) -> None:
    lines = show("--quarantine").output
    assert "d.jsonl:7" in lines
    assert "line 8 is no JSON object" in lines
    assert [each["record"] for each in json.loads(show("--quarantine", "--json").output)] == [7, 1]
    for name in ("d.jsonl", "d.jsonl:7"):
        [found] = json.loads(show("--document", name, "--json").output)
        assert (found["state"], found["reason"]) == ("quarantined", "line 8 is no JSON object")


def test_a_file_of_several_records_is_listed_and_one_of_them_is_asked_for(show: Callable[..., Any]) -> None:
    found = json.loads(show("--document", "b.txt", "--json").output)
    assert [(each["record"], each["state"]) for each in found] == [(0, "kept"), (1, "quarantined")]
    [one] = json.loads(show("--document", "b.txt:0", "--json").output)
    assert (one["id"], one["kind"]) == (IDS[1], "kept")
