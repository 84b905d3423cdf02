"""Dedup on Ray nodes of which workers, whole nodes and the driver are killed, at moments nobody chose."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from dedup_corpora import make_corpus, planted_pair
from dedup_workspaces import InProcess, Quiet
from ray_nodes import Nodes, ray_nodes

from ingot.pipelines import dedup
from ingot.pipelines.artifact import Artifact, digest_of
from ingot.pipelines.sections import Dedup
from ingot.pipelines.store import LocalStore, Store, open_store

KILLS = ["worker"] * 13 + ["driver"] * 5 + ["node"] * 4


def corpus_in(store: Store) -> Artifact:
    draw = random.Random(8)
    texts: dict[str, str] = {}
    for number in range(120):
        pair = planted_pair(draw, draw.choice((0.6, 0.82, 0.9)), 120)
        texts |= {f"{number}/{side}": text for side, text in enumerate(pair[:2])}
        texts[f"{number}/copy"] = texts[f"{number}/0"].upper()
    return make_corpus(store, texts, files=4, key="killed")


class Runs:
    """Runs of the stage one after another, each with another seed, until told to stop."""

    def __init__(self, nodes: Nodes, uri: str, corpus: str, folder: Path) -> None:
        self.nodes, self.words, self.folder = nodes, [uri, corpus], folder
        self.digests: list[str] = []
        self._start()

    def _start(self) -> None:
        script = str(Path(__file__).with_name("dedup_driver.py"))
        settings = json.dumps({"seed": len(self.digests) + 1})
        path = os.pathsep.join(sys.path)
        with open(self.folder / "out", "wb") as out, open(self.folder / "err", "wb") as err:
            self.driver = subprocess.Popen(
                [sys.executable, script, *self.words, "2", settings],
                env={**self.nodes.env, "PYTHONPATH": path, "PYTHONHASHSEED": str(len(self.digests))},
                stdout=out,
                stderr=err,
                start_new_session=True,
            )

    def go_on(self) -> None:
        """Starts what comes next where the driver has ended."""
        status = self.driver.poll()
        if status is None:
            return
        if status == 0:
            self.digests.append(json.loads((self.folder / "out").read_text().splitlines()[-1])["digest"])
        elif status != -signal.SIGKILL:
            raise AssertionError((self.folder / "err").read_text())
        self._start()

    def kill(self, what: str, draw: random.Random) -> bool:
        """Whether there was one."""
        if what == "driver":
            self.driver.kill()
            self.driver.wait()
            return True
        if what == "node":
            raylets = [node for node in self.nodes.processes[1:] if node.poll() is None]
            self.nodes.kill(draw.choice(raylets))
            self.nodes.add(cpus=1)
            return True
        workers = [
            process
            for node in self.nodes.processes[1:]
            if node.poll() is None
            for process in psutil.Process(node.pid).children(recursive=True)
            if process.name().startswith("ray::Map")  # it has a unit in hand
        ]
        if workers:
            draw.choice(workers).kill()
        return bool(workers)

    def stop(self) -> None:
        self.driver.kill()
        self.driver.wait()


@pytest.mark.long
@pytest.mark.timeout(900)
def test_whatever_is_killed_the_digest_is_that_of_an_undisturbed_run(s3: Any, tmp_path: Path) -> None:
    store = open_store(s3.uri("dedup-kills"))
    corpus = corpus_in(store)
    draw = random.Random(20)
    kills = draw.sample(KILLS, len(KILLS))
    done: list[str] = []
    with ray_nodes(tmp_path, raylets=2, cpus=1) as nodes:
        runs = Runs(nodes, store.uri, corpus.key, tmp_path)
        try:
            while kills:
                time.sleep(draw.uniform(0.5, 4))
                runs.go_on()
                if runs.kill(kills[0], draw):
                    done.append(kills.pop(0))
            ended = len(runs.digests) + 1
            end = time.monotonic() + 300
            while len(runs.digests) < ended:
                time.sleep(0.5)
                runs.go_on()
                assert time.monotonic() < end, (tmp_path / "err").read_text()
        finally:
            runs.stop()
    assert len(done) == len(KILLS) >= 20
    whole = LocalStore(str(tmp_path / "whole"))
    undisturbed = []
    for number in range(len(runs.digests)):
        workspace = InProcess(whole, "artifacts/dedup/whole", Quiet())
        outcome = dedup.run(workspace, Dedup(seed=number + 1), {"corpus": corpus_in(whole)})
        undisturbed.append(digest_of(outcome.files))
    assert runs.digests == undisturbed
