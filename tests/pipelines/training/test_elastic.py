"""Workers come and go: on a cluster that gets a second node and loses it again, the training is the one of an
undisturbed worker."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from killing import wait_for_step
from made_tokens import put_tokens
from ray_nodes import ray_nodes

from ingot.pipelines.sections import Pretrain
from ingot.pipelines.store import Store, open_store
from ingot.pipelines.training.checkpoint import newest_step
from ingot.pipelines.training.group import Group
from ingot.pipelines.training.job import Job, Part, SpecialTokens
from ingot.pipelines.training.log import read_log
from ingot.pipelines.training.loop import Loop

if TYPE_CHECKING:
    from conftest import S3

pytestmark = [pytest.mark.long, pytest.mark.timeout(600)]

KEY, UNDISTURBED, GATE = "artifacts/pretrain/elastic", "artifacts/pretrain/undisturbed", "gates/elastic"
EVERY, PACE = 10, 0.5  # steps between checkpoints; seconds a step takes at least until the gate is open
STEPS = 300
SECTION: dict[str, Any] = {
    "model": {"width": 32, "layers": 2, "heads": 4, "kv_heads": 2, "hidden": 64, "context": 32},
    "steps": STEPS,
    "batch_tokens": 256,
    "learning_rate": 0.003,
    "warmup_steps": 20,
    "workers": [1, 2],
    "resize_every": 2,
    "micro_batch": 8,
    "checkpoint_every": EVERY,
}


@dataclass
class Driver:
    """A driver in a process of its own, and what it says, with the time (time.monotonic)."""

    process: subprocess.Popen[str]
    said: list[tuple[float, str]] = field(default_factory=list)

    def listen(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.said.append((time.monotonic(), line.rstrip("\n")))

    def wait_for(self, words: str) -> float:
        """When it said a line with these words."""
        while self.process.poll() is None:
            for at, line in list(self.said):
                if words in line:
                    return at
            time.sleep(0.05)
        raise AssertionError(f"never said {words!r}: {self.said}")


@dataclass(frozen=True)
class Elastic:
    """A training whose second worker came and went."""

    store: Store
    metrics: dict[str, Any]
    said: list[str]
    before: int  # the newest checkpoint's step some steps before the node was lost
    after: int  # and when the smaller group started; one may have been on its way
    seconds_to_grow: float  # from the node's start to the larger group's
    seconds_to_go_on: float  # from the node's end to the smaller group's start


def made_job(store: Store) -> Job:
    tokens = np.random.default_rng(0).zipf(1.5, 50_000) % 300
    artifact = put_tokens(store, [tokens], tokens[:100])
    spec = {"tokens": artifact.key, "context": 32, "rows": 8, "seed": 1, "gate": GATE, "seconds": PACE}
    model = vars(Pretrain.model_validate(SECTION).model.config(300))
    return Job(Part("training.paced_rows:PacedRows", spec), SpecialTokens(0, (0,), 0), model)


@pytest.fixture(scope="module")
def elastic(s3: S3, tmp_path_factory: pytest.TempPathFactory) -> Elastic:
    store, folder = open_store(s3.uri("elastic")), tmp_path_factory.mktemp("elastic")
    script = Path(__file__).with_name("driver.py")
    job = json.dumps(made_job(store).to_json())
    command = [sys.executable, str(script), store.uri, KEY, json.dumps(SECTION), job]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(script.parents[1]), prepend=":")
        with ray_nodes(folder, raylets=1, cpus=1) as nodes:
            process = subprocess.Popen(command, cwd=folder, env=nodes.env, stdout=subprocess.PIPE, text=True)
            driver = Driver(process)
            listener = threading.Thread(target=driver.listen)
            listener.start()
            try:
                assert wait_for_step(store, KEY, EVERY)
                node = nodes.add(cpus=1)
                joined = time.monotonic()
                grown = driver.wait_for("attempt 2")
                begun = wait_for_step(store, KEY, 0)
                assert begun is not None
                before = wait_for_step(store, KEY, begun + EVERY)
                assert before is not None
                time.sleep(4 * PACE)  # for some steps more, but not as many as to the next checkpoint
                nodes.kill(node)
                lost = time.monotonic()
                gone_on = driver.wait_for("attempt 3")
                after = newest_step(store, KEY)
                assert after is not None
                store.create(GATE, b"open")
                assert process.wait(120) == 0
            finally:
                process.kill()
                listener.join()
    *said, metrics = [line for _, line in driver.said]
    print(*said, f"grown after {grown - joined:.1f} s, on after {gone_on - lost:.1f} s", sep="\n")
    return Elastic(store, json.loads(metrics), said, before, after, grown - joined, gone_on - lost)


@pytest.fixture(scope="module")
def undisturbed(elastic: Elastic) -> list[dict[str, Any]]:
    """The log of one worker that trains the same in one go, in this process."""
    section = Pretrain.model_validate(SECTION | {"workers": 1, "checkpoint_every": STEPS})
    group = Group(0, 1, torch.device("cpu"), section.micro_batch)
    Loop(elastic.store, UNDISTURBED, made_job(elastic.store), section, group).run()
    return read_log(elastic.store, UNDISTURBED)


@pytest.fixture(scope="module")
def lines(elastic: Elastic) -> list[dict[str, Any]]:
    return read_log(elastic.store, KEY)


def test_after_a_driver_is_killed_the_next_one_begins_at_once(s3: S3, tmp_path: Path) -> None:
    """On a cluster that lives on, and with it the coordinator, which keeps the dead training's request for
    180 s."""
    store, key = open_store(s3.uri("killed-driver")), "artifacts/pretrain/killed"
    script = Path(__file__).with_name("driver.py")
    section = SECTION | {"steps": 3 * EVERY, "workers": [1, 2]}
    command = [sys.executable, str(script), store.uri, key, json.dumps(section)]
    command.append(json.dumps(made_job(store).to_json()))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(script.parents[1]), prepend=":")
        with ray_nodes(tmp_path, raylets=1, cpus=1) as nodes:
            first = subprocess.Popen(command, cwd=tmp_path, env=nodes.env, stdout=subprocess.DEVNULL)
            try:
                assert (wait_for_step(store, key, EVERY) or 0) >= EVERY
            finally:
                first.kill()
                first.wait()
            store.create(GATE, b"open")
            second = subprocess.run(
                command, cwd=tmp_path, env=nodes.env, stdout=subprocess.PIPE, text=True, timeout=120
            )
    assert second.returncode == 0
    *said, metrics = second.stdout.splitlines()
    print(*said, sep="\n")
    assert any(line.startswith("  attempt 2: 1 worker goes on at step ") for line in said)
    assert json.loads(metrics)["steps"] == 3 * EVERY


def first_step(lines: list[dict[str, Any]], attempt: int) -> int:
    return next(line["step"] for line in lines if line["attempt"] == attempt)


def test_a_node_that_joins_is_used_and_one_that_is_lost_is_done_without(
    elastic: Elastic, lines: list[dict[str, Any]]
) -> None:
    worlds = {line["attempt"]: line["workers"] for line in lines}
    assert worlds == {1: 1, 2: 2, 3: 1}
    assert elastic.metrics["steps"] == STEPS
    # Ray would wait a minute for the larger group before it starts the smaller one
    assert elastic.seconds_to_go_on < 60


def test_each_change_goes_on_from_a_checkpoint_and_growing_costs_no_step(
    elastic: Elastic, lines: list[dict[str, Any]]
) -> None:
    grown, shrunk = first_step(lines, 2), first_step(lines, 3)
    assert EVERY <= grown <= elastic.before - EVERY
    assert elastic.before <= shrunk == elastic.after
    again = elastic.metrics["steps_repeated"]
    assert again <= EVERY
    steps = {0: "no step is", 1: "1 step is"}.get(again, f"{again} steps are")
    assert elastic.said == [
        f"  room for 2 workers: saved at step {grown}",
        f"  attempt 2: 2 workers go on at step {grown} of {STEPS}, no step is taken again",
        f"  attempt 3: 1 worker goes on at step {shrunk} of {STEPS}, {steps} taken again",
    ]


def test_every_step_reads_the_samples_that_it_would_have_read(
    lines: list[dict[str, Any]], undisturbed: list[dict[str, Any]]
) -> None:
    assert [line["step"] for line in lines] == list(range(STEPS))
    for name in ("samples", "tokens", "learning_rate"):
        assert [line[name] for line in lines] == [line[name] for line in undisturbed]
    assert {line["tokens"] for line in lines} == {256}
    assert {len(line["samples"]) for line in lines} == {8}


def test_the_losses_are_those_of_the_undisturbed_worker(
    lines: list[dict[str, Any]], undisturbed: list[dict[str, Any]]
) -> None:
    losses, expected = ([line["loss"] for line in each] for each in (lines, undisturbed))
    print(max(abs(loss / other - 1) for loss, other in zip(losses, expected, strict=True)))
    assert losses == pytest.approx(expected, rel=1e-4)
    assert losses[-1] < losses[0] - 1
