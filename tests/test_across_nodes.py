"""The whole path on a cluster of three nodes with nothing but an S3 service in common: from raw text to a
model that answers, by the commands that a person gives."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from pydoc_data.topics import topics
from typing import TYPE_CHECKING, Any

import boto3
import openai
import pytest
import yaml
from ports import free_port
from processes import started
from ray_nodes import Nodes, ray_nodes

if TYPE_CHECKING:
    from conftest import S3

pytestmark = pytest.mark.timeout(600)

STAGES = [
    "corpus",
    "dedup",
    "tokenizer",
    "tokens",
    "pretrain",
    "sft",
    "preference",
    "evaluate",
    "publish",
]
TRAINING = {"steps": 4, "warmup_steps": 1, "learning_rate": 0.001, "workers": 2, "placement": "spread"}
RECIPE: dict[str, Any] = {
    "name": "nodes",
    "corpus": {
        "sources": [
            {"source": "python-packages", "packages": ["numpy"]},
            {"source": "files", "name": "topics", "path": "RAW"},
        ],
        "unit_bytes": 4_000_000,
    },
    "tokenizer": {"vocabulary": 1024, "sample_bytes": 1_000_000},
    "pretrain": {
        **TRAINING,
        "model": {"width": 64, "layers": 2, "heads": 2, "kv_heads": 1, "hidden": 128, "context": 256},
        "batch_tokens": 2048,
        "evaluate_tokens": 8192,
        "checkpoint_every": 2,
    },
    "sft": {**TRAINING, "batch_conversations": 4, "most": 500},
    "preference": {**TRAINING, "batch_pairs": 4, "pairs": 100, "held_out_pairs": 200},
    "evaluate": {"evaluate_tokens": 8192, "sample_tokens": 8},
    "publish": {"model": "across"},
}


@dataclass(frozen=True)
class Run:
    """A run on three nodes, and what is needed to look at it."""

    nodes: Nodes
    recipe: Path
    store: str
    folder: Path  # the driver's
    done: Any
    shown: dict[str, Any]

    def metrics(self, stage: str) -> dict[str, Any]:
        return next(each["metrics"] for each in self.shown["stages"] if each["stage"] == stage)


@pytest.fixture(scope="module")
def nodes(s3: S3, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nodes]:
    folder = tmp_path_factory.mktemp("cluster")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("INGOT_CACHE", str(folder / "cache"))
        with ray_nodes(folder, raylets=2, cpus=1) as started:
            yield started


@pytest.fixture(scope="module")
def path(nodes: Nodes, s3: S3, tmp_path_factory: pytest.TempPathFactory, run_ingot: Any) -> Run:
    raw = "".join(json.dumps({"text": text, "topic": name}) + "\n" for name, text in topics.items())
    boto3.client("s3").put_object(Bucket=s3.bucket, Key="raw/topics.jsonl", Body=raw.encode())
    folder = tmp_path_factory.mktemp("driver")
    recipe, store = folder / "recipe.yaml", s3.uri("across-nodes")
    recipe.write_text(yaml.safe_dump(RECIPE).replace("RAW", s3.uri("raw")))
    done = run_ingot("run", str(recipe), "--store", store, cwd=folder, env=nodes.env, timeout=500)
    assert done.returncode == 0, done.stdout + done.stderr
    print(done.stdout)
    shown = run_ingot("runs", "show", "nodes", "--store", store, "--json", cwd=folder)
    return Run(nodes, recipe, store, folder, done, json.loads(shown.stdout))


def test_every_stage_is_committed(path: Run) -> None:
    assert (path.shown["run"], path.shown["store"]) == ("nodes", path.store)
    assert [stage["stage"] for stage in path.shown["stages"]] == STAGES
    assert {stage["status"] for stage in path.shown["stages"]} == {"committed"}
    for stage in path.shown["stages"]:
        assert stage["seconds"] > 0
        assert len(stage["digest"]) == 64
        assert stage["stage"] in path.done.stdout


def test_both_sources_were_read(path: Run) -> None:
    corpus, dedup = path.metrics("corpus"), path.metrics("dedup")
    assert corpus["documents_out"] > len(topics)
    assert corpus["bytes_in"] > 10_000_000
    assert dedup["documents_in"] == corpus["documents_out"] > dedup["documents_out"]


@pytest.mark.parametrize("stage", ["pretrain", "sft", "preference"])
def test_the_workers_of_a_training_are_on_different_nodes(path: Run, stage: str) -> None:
    metrics = path.metrics(stage)
    assert metrics["world_size"] == 2
    assert metrics["steps"] == 4
    assert len({worker["node"] for worker in metrics["workers"]}) == 2
    assert all(worker["sharded"] for worker in metrics["workers"])


def test_what_a_person_asks_for_is_measured(path: Run) -> None:
    assert {"documents_in", "documents_out", "bytes_in", "bytes_out"} <= path.metrics("dedup").keys()
    assert {"tokens", "bytes_per_token"} <= path.metrics("tokens").keys()
    pretrain = path.metrics("pretrain")
    assert pretrain["bits_per_byte_after"] < pretrain["bits_per_byte_before"]
    assert {"parameters", "tokens_per_second", "bits_per_byte_unigram"} <= pretrain.keys()
    preference = path.metrics("preference")
    assert preference["held_out_pairs"] >= 200
    assert {"accuracy_before", "accuracy_after", "margin_after"} <= preference.keys()
    assert len(path.metrics("evaluate")["samples"]) == 3
    assert path.metrics("publish")["version"] == 1


def test_a_local_folder_is_refused_with_the_mend(path: Run, run_ingot: Any, tmp_path: Path) -> None:
    done = run_ingot("run", str(path.recipe), "--store", "here", cwd=tmp_path, env=path.nodes.env)
    assert done.returncode == 2
    assert "a local folder, but the cluster has 3 nodes" in done.stderr
    assert "--store s3://bucket/prefix" in done.stderr
    assert not (tmp_path / "here" / "artifacts").exists()


def test_the_cluster_serves_it(path: Run) -> None:
    port = free_port()
    command = [sys.executable, "-m", "ingot.services.cli", "serve", "across", "--store", path.store]
    with started(
        [*command, "--port", str(port)],
        cwd=path.folder,
        env={**os.environ, **path.nodes.env},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as server:
        assert server.stdout is not None
        said = []
        for line in server.stdout:
            said.append(line)
            if "interrupt to stop" in line:
                break
        assert server.poll() is None, "".join(said)
        client = openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", max_retries=0)
        question = 'def add(a, b):\n    """Return the sum of a and b."""'
        answer = client.chat.completions.create(
            model="across", messages=[{"role": "user", "content": question}], max_tokens=8
        )
        assert answer.model == "across@1"
        assert answer.usage is not None
        assert answer.usage.completion_tokens > 0
        server.send_signal(signal.SIGINT)
        assert server.wait(60) == 0


def test_all_that_lasts_is_in_the_store(path: Run, run_ingot: Any, tmp_path: Path) -> None:
    """Without the cluster and its disks, from another folder, the run is whole."""
    assert [list(folder.iterdir()) for folder in path.nodes.folders] == [[], [], []]
    assert [item.name for item in path.folder.iterdir()] == [path.recipe.name]
    path.nodes.stop()
    again = run_ingot("run", str(path.recipe), "--store", path.store, cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert again.stdout.count("already committed") == len(STAGES)
    assert "Ray" not in again.stdout
