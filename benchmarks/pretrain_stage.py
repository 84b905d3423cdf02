"""The pretrain stage beside the bare step: what Ray Train, the loader and saving cost; part of pretrain.py.

The stage is `ingot run` with its store on an S3 service in a process of its own, the bare step
`ingot.model.train_step` in a process without Ray, over the rows that the stage reads. They run in turns, a
whole training each: while the bare step runs there is no Ray on the machine. Ray's own processes (raylet,
GCS, agents, the actors of Ray Train) take about a tenth of a core; where a step computes on all cores, that
is taken from it. So both run with a core left to the rest, as there is beside a GPU, and on all cores."""

from __future__ import annotations

import itertools
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from dedup_texts import gather
from peers.environment import ROOT, Peer
from peers.training import CLIP, LEARNING_RATE
from pretrain_step import write_model
from safetensors.torch import save_file

from ingot.model import ModelConfig
from ingot.pipelines.artifact import Artifact, load
from ingot.pipelines.pretrain import pretraining
from ingot.pipelines.sections import Pretrain
from ingot.pipelines.store import Store, open_store
from ingot.pipelines.training.dataset import load_by_name
from ingot.pipelines.training.job import Job
from ingot.pipelines.training.log import read_log

TOLERANCE = 2e-4  # of a loss, as in pretrain_step.py
FIRST = 2  # steps of a training that are not timed: they compile, and read the first rows


@dataclass(frozen=True)
class Size:
    megabytes: int  # of text
    vocabulary: int
    model: Mapping[str, int]
    rows: int
    steps: int
    turns: int
    threads: tuple[int, ...]


FULL = Size(
    8,
    8192,
    {"width": 256, "layers": 6, "heads": 4, "kv_heads": 2, "hidden": 768, "context": 512},
    4,
    24,
    2,
    (1, 2),
)
QUICK = Size(
    1,
    2048,
    {"width": 128, "layers": 2, "heads": 4, "kv_heads": 2, "hidden": 384, "context": 256},
    4,
    24,
    1,
    (1,),
)


@dataclass(frozen=True)
class Training:
    """What one run of the stage left in the store: a line a step, and for each checkpoint when and for how
    long it was written."""

    lines: list[dict[str, Any]]
    writes: dict[int, tuple[float, float]]  # step → end, and the seconds before it

    def undisturbed(self) -> list[dict[str, Any]]:
        """The timed steps during which no checkpoint was written: that work is not the loop's."""
        return [
            line
            for line in self.lines[FIRST:]
            if not any(self._meets(line, *own) for own in self.writes.values())
        ]

    @staticmethod
    def _meets(line: Mapping[str, Any], end: float, seconds: float) -> bool:
        return bool(line["at"] - line["seconds"] < end and end - seconds < line["at"])


def measure_stage(quick: bool) -> tuple[dict[str, float], dict[str, float]]:
    """The stage's steps over bare ones, and the shares of waiting and of saving."""
    size = QUICK if quick else FULL
    print("\nthe stage: ingot run, its store on an S3 service of this machine", flush=True)
    with tempfile.TemporaryDirectory(prefix="ingot-bench-") as name, s3_service(), ExitStack() as stack:
        bench = Bench(Path(name), size)
        bench.ingot("tokens", {})
        words = (bench.write_bare(), size.steps)
        pairs = {
            threads: Pair(
                stack.enter_context(
                    Peer("bare", "ingot_training", *words, threads, "compiled", python=sys.executable)
                )
            )
            for threads in size.threads
        }
        for pair in pairs.values():
            pair.begin()
        seeds = itertools.count(1)  # a training that was made is not made again, however many threads it has
        for _ in range(size.turns):
            for threads, pair in pairs.items():
                pair.take_turn(bench.train(next(seeds), threads))
    refuse_other_losses(pairs[1].losses, pairs[1].trainings[0])
    return compared(pairs)


class Pair:
    """The bare step and the stage with as many threads."""

    def __init__(self, loop: Peer) -> None:
        self.loop = loop
        self.bare: list[float] = []  # seconds a step, before and after each training
        self.trainings: list[Training] = []

    def begin(self) -> None:
        self.losses = self.loop.ask("begin")["losses"]
        self._time()

    def take_turn(self, training: Training) -> None:
        self.trainings.append(training)
        self._time()

    def _time(self) -> None:
        self.bare.append(statistics.median(self.loop.ask("time")["seconds"]))

    def compare(self) -> tuple[float, float, float]:
        """Seconds a step of both, and what part of the bare step's speed the stage has."""
        own = [statistics.median(line["seconds"] for line in each.undisturbed()) for each in self.trainings]
        around = [statistics.mean(self.bare[number : number + 2]) for number in range(len(own))]
        ratio = statistics.median(there / here for there, here in zip(around, own, strict=True))
        return statistics.median(around), statistics.median(own), ratio


def refuse_other_losses(bare: list[float], training: Training) -> None:
    for loss, line in zip(bare, training.lines, strict=True):
        if abs(line["loss"] - loss) > TOLERANCE * loss:
            raise SystemExit(
                f"the stage: loss {line['loss']} at step {line['step']}, where the bare one's is {loss}"
            )
    print(f"  the losses of {len(bare)} steps are those of bare steps", flush=True)


def compared(pairs: dict[int, Pair]) -> tuple[dict[str, float], dict[str, float]]:
    figures: dict[str, float] = {}
    ratios: dict[str, float] = {}
    for threads, pair in pairs.items():
        there, here, ratio = pair.compare()
        print(f"  {threads} threads: bare {there:.3f} s a step, the stage {here:.3f} s: {ratio:.3f}")
        whole = "" if threads == 1 else "_on_all_cores"
        ratios[f"ray_vs_bare{whole}"] = ratio
        figures |= {f"bare_seconds_per_step{whole}": there, f"stage_seconds_per_step{whole}": here}
    trainings = [training for pair in pairs.values() for training in pair.trainings]
    lines = [line for each in trainings for line in each.lines[FIRST:]]
    waited = sum(line["seconds_waited"] for line in lines) / sum(line["seconds"] for line in lines)
    # The step after a save was held up by it; that of the last save never came.
    pauses = [
        (line["seconds_paused"], each.writes[line["step"]][1])
        for each in trainings
        for line in each.lines
        if line["step"] in each.writes
    ]
    paused = sum(pause for pause, _ in pauses) / sum(written for _, written in pauses)
    print(f"  steps waited {waited:.3%} of their time for rows")
    print(
        f"  {len(pauses)} saves held steps up for {statistics.median(p for p, _ in pauses) * 1e3:.0f} ms "
        f"and were written in {statistics.median(w for _, w in pauses) * 1e3:.0f} ms: {paused:.2%}"
    )
    figures |= {
        "data_wait_share": waited,
        "checkpoint_pause_share": paused,
        "checkpoint_pause_seconds": statistics.median(pause for pause, _ in pauses),
        "checkpoint_write_seconds": statistics.median(written for _, written in pauses),
    }
    return figures, ratios


class Bench:
    """A recipe over a folder of texts, with its store on S3."""

    def __init__(self, folder: Path, size: Size) -> None:
        self.folder, self.size, self.uri = folder, size, "s3://bench/store"
        self.recipe = folder / "recipe.yaml"
        texts = folder / "texts"
        texts.mkdir()
        (texts / "texts.jsonl").write_text(
            "".join(json.dumps({"text": text}) + "\n" for text in gather(size.megabytes * 10**6))
        )
        self.pretrain: dict[str, Any] = {
            "model": dict(size.model),
            "steps": size.steps,
            "batch_tokens": size.rows * size.model["context"],
            "learning_rate": LEARNING_RATE,
            "floor": 1.0,  # of the learning rate: it stays constant
            "weight_decay": 0.0,
            "clip": CLIP,
            "evaluate_tokens": 4096,
            "micro_batch": size.rows,
            "compile": True,
            "checkpoint_every": size.steps // 3,
            "keep_checkpoints": 3,
        }
        body = {
            "name": "bench",
            "corpus": {"sources": [{"source": "files", "name": "texts", "path": str(texts)}]},
            "dedup": {},
            "tokenizer": {"vocabulary": size.vocabulary},
            "tokens": {},
            "pretrain": self.pretrain,
        }
        self.recipe.write_text(json.dumps(body))  # JSON is YAML

    def ingot(self, until: str, settings: Mapping[str, int]) -> None:
        words = ["run", str(self.recipe), "--store", self.uri, "--until", until]
        words += [word for name, value in settings.items() for word in ("--set", f"pretrain.{name}={value}")]
        command = [sys.executable, "-m", "ingot.services.cli", *words]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"{' '.join(command)}\n{done.stdout}{done.stderr}")

    def train(self, seed: int, threads: int) -> Training:
        store = open_store(self.uri)
        earlier = self._keys(store, "pretrain")
        self.ingot("pretrain", {"seed": seed, "cpus_per_worker": threads})
        [key] = self._keys(store, "pretrain") - earlier
        writes = {}
        for name in store.list(f"{key}/checkpoints/"):
            if name.endswith("/manifest.json"):
                made = json.loads(store.read(name))["made"]
                writes[int(name.split("/")[-2])] = (made["at"], made["seconds_written"])
        return Training(read_log(store, key), writes)

    def write_bare(self) -> Path:
        """The weights that the first training begins with, and the rows that it reads, as the bare step's
        process wants them."""
        store = open_store(self.uri)
        job = self._job(store)
        folder = self.folder / "bare"
        assert job.model is not None
        write_model(folder, ModelConfig(**job.model), seed=1)
        dataset = load_by_name(job.dataset.name)(store, job.dataset.spec)
        shares = [dataset.share(step, 0, 1, self.size.rows) for step in range(self.size.steps)]
        batches = [batch for share in shares for batch in share.batches]
        columns = {"tokens": "tokens_BT", "targets": "targets_BT"}
        if batches[0].documents_BT is not None:
            columns["documents"] = "documents_BT"
        rows = {
            name: torch.stack([getattr(batch, field) for batch in batches]) for name, field in columns.items()
        }
        save_file(rows, folder / "rows.safetensors")
        return folder

    def _job(self, store: Store) -> Job:
        section = Pretrain.model_validate({**self.pretrain, "seed": 1})
        return pretraining(section, self._artifact(store, "tokens"), self._artifact(store, "tokenizer"))

    def _artifact(self, store: Store, stage: str) -> Artifact:
        [key] = self._keys(store, stage)
        artifact = load(store, key)
        assert artifact is not None, key
        return artifact

    def _keys(self, store: Store, stage: str) -> set[str]:
        names = store.list(f"artifacts/{stage}/")
        return {"/".join(name.split("/")[:3]) for name in names}


@contextmanager
def s3_service() -> Iterator[None]:
    """The one that the tests use, with one bucket; its address and credentials go into the environment."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        port = held.getsockname()[1]
    os.environ |= {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_ACCESS_KEY_ID": "bench",
        "AWS_SECRET_ACCESS_KEY": "bench",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    server = subprocess.Popen(
        [sys.executable, str(ROOT / "tests" / "s3_server.py"), str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        create_bucket(server)
        yield
    finally:
        server.kill()
        server.wait()


def create_bucket(server: subprocess.Popen[bytes]) -> None:
    import boto3
    from botocore.exceptions import EndpointConnectionError

    client = boto3.client("s3")
    until = time.monotonic() + 60
    while True:
        try:
            client.create_bucket(Bucket="bench")
            return
        except EndpointConnectionError:
            if server.poll() is not None or time.monotonic() > until:
                raise SystemExit(
                    "the S3 service of tests/s3_server.py does not start; it needs moto"
                ) from None
            time.sleep(0.2)
