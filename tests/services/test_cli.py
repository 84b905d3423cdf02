"""The command line's words, exit codes and JSON, each call in a process of its own."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from processes import started

RECIPE = """\
name: demo
corpus:
  sources:
    - {source: files, name: texts, path: TEXTS}
"""


@dataclass(frozen=True)
class Finished:
    """A run of the corpus stage, and the store it is in."""

    recipe: Path
    store: Path
    stdout: str


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("texts")
    for number in range(3):
        (folder / f"{number}.txt").write_text(f"text {number} " * 50)
    return folder


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, texts: Path, run_ingot: Any) -> Finished:
    folder = tmp_path_factory.mktemp("run")
    recipe, store = folder / "recipe.yaml", folder / "store"
    recipe.write_text(RECIPE.replace("TEXTS", str(texts)))
    done = run_ingot("run", str(recipe), "--store", str(store), "--until", "corpus", cwd=folder)
    assert done.returncode == 0, done.stderr
    return Finished(recipe, store, done.stdout)


IMPORTED = """
import sys
from ingot.services.cli import main
try:
    main()
except SystemExit as leave:
    assert not leave.code, leave.code
for name in ("ray", "torch", "vllm", "transformers", "pyarrow", "boto3", "numpy", "pydantic"):
    if name in sys.modules:
        print(name, file=sys.stderr)
"""


def imported(*words: str) -> set[str]:
    done = subprocess.run([sys.executable, "-c", IMPORTED, *words], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return set(done.stderr.split())


def test_help_imports_nothing_heavy() -> None:
    assert imported("--help") == set()
    for command in ("run", "plan", "runs", "models", "submit", "jobs", "serve", "doctor"):
        assert imported(command, "--help") <= {"pydantic"}, command


def test_looking_at_runs_imports_no_machinery(finished: Finished) -> None:
    assert imported("runs", "list", "--store", str(finished.store)) <= {"pydantic"}


def test_help_names_the_commands(run_ingot: Any) -> None:
    done = run_ingot("--help")
    assert done.returncode == 0
    for command in ("run", "plan", "runs", "models", "submit", "jobs", "serve", "doctor"):
        assert f" {command} " in done.stdout


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["run"], "Missing"),
        (["nonsense"], "nonsense"),
        (["run", "recipe.yaml", "--bogus"], "--bogus"),
        (["serve", "tiny", "--port", "99999"], "--port"),
        (["submit", "recipe.yaml"], "--to"),
        (["submit", "none.yaml", "--to", "http://h:1"], "none.yaml: can't read the recipe: No such file"),
        (
            ["jobs", "list", "--to", "h:8265"],
            "write the address of the cluster's dashboard as http://HOST:PORT",
        ),
        (["jobs", "logs", "tiny-1"], "name the cluster with --to, or the store"),
        (["plan", "none.yaml"], "none.yaml: can't read the recipe: No such file"),
        (["run", "none.yaml"], "none.yaml: can't read the recipe: No such file"),
        (["runs", "list", "--store", "none"], "none: holds no runs"),
        (["runs", "list", "--store", "gs://bucket/x"], "neither a folder nor s3://bucket/prefix"),
        (["models", "list", "--store", "none"], "none: holds no runs"),
        (["runs", "tensorboard", "tiny"], "--to"),
    ],
)
def test_bad_usage_is_exit_code_2(run_ingot: Any, tmp_path: Path, words: list[str], said: str) -> None:
    done = run_ingot(*words, cwd=tmp_path)
    assert done.returncode == 2
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", ["run", "plan"])
def test_a_wrong_recipe_is_told_whole_before_anything_is_written(
    run_ingot: Any, tmp_path: Path, command: str
) -> None:
    (tmp_path / "r.yaml").write_text("name: a\ncorpus:\n  sources: []\ntokeniser:\n  vocabulary: 300\n")
    done = run_ingot(command, "r.yaml", "--store", "store", "--set", "tokens.held_out=2", cwd=tmp_path)
    assert done.returncode == 2
    lines = done.stderr.splitlines()
    assert lines[0].startswith("error: r.yaml:3: corpus.sources: ")
    assert any(line.startswith("--set tokens.held_out=2: tokens.held_out: ") for line in lines)
    assert "r.yaml:4: tokeniser: no such key; nearest: tokenizer" in lines
    assert [path.name for path in tmp_path.iterdir()] == ["r.yaml"]


@pytest.mark.parametrize("where", ["below a file", "in no bucket"])
def test_a_store_that_cannot_be_written_is_exit_code_1(
    run_ingot: Any, tmp_path: Path, where: str, request: pytest.FixtureRequest, texts: Path
) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "r.yaml").write_text(RECIPE.replace("TEXTS", str(texts)))
    if where == "in no bucket":
        request.getfixturevalue("s3")
    store = "file/store" if where == "below a file" else "s3://no-such-bucket/x"
    done = run_ingot("run", "r.yaml", "--store", store, cwd=tmp_path)
    assert done.returncode == 1
    [line] = done.stderr.splitlines()
    assert line.startswith("error: store ")
    assert ("--store" if where == "below a file" else "name one that exists") in line


def test_a_run_says_what_it_did(finished: Finished) -> None:
    assert f"run demo in {finished.store}" in finished.stdout
    assert "3 documents" in finished.stdout
    assert f"ingot runs show demo --store {finished.store}" in finished.stdout


def test_the_same_run_again_does_nothing(run_ingot: Any, finished: Finished) -> None:
    # without a cluster: none is needed, and this address would not answer
    words = [
        "run",
        str(finished.recipe),
        "--store",
        str(finished.store),
        "--until",
        "corpus",
        "--name",
        "again",
    ]
    done = run_ingot(*words, env={"RAY_ADDRESS": "127.0.0.1:9"})
    assert done.returncode == 0, done.stderr
    assert "already committed" in done.stdout


def test_what_a_run_printed_is_kept_where_it_is_asked_to(run_ingot: Any, finished: Finished) -> None:
    """As the RayJobs of k8s/ ask: their pods, and the logs in them, are gone when the run is."""
    store = ["--store", str(finished.store)]
    words = [str(finished.recipe), *store, "--name", "kept", "--until", "corpus", "--keep-output"]
    printed = run_ingot("run", *words).stdout
    assert "run kept in" in printed
    assert run_ingot("jobs", "logs", "kept", *store).stdout == printed


def test_a_ray_that_does_not_answer_is_one_message(run_ingot: Any, texts: Path, tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text(RECIPE.replace("TEXTS", str(texts)))
    done = run_ingot("run", "r.yaml", "--store", "store", cwd=tmp_path, env={"RAY_ADDRESS": "127.0.0.1:9"})
    assert done.returncode == 1
    [line] = done.stderr.splitlines()
    assert "Ray at 127.0.0.1:9: nothing answers" in line
    assert "RAY_ADDRESS" in line


def test_runs_are_shown_as_json(run_ingot: Any, finished: Finished) -> None:
    done = run_ingot("runs", "show", "demo", "--store", str(finished.store), "--json")
    assert done.returncode == 0
    shown = json.loads(done.stdout)
    assert shown["run"] == "demo"
    assert shown["store"] == str(finished.store)
    [stage] = shown["stages"]
    assert {"stage", "fingerprint", "digest", "status", "seconds", "metrics"} <= stage.keys()
    assert (stage["stage"], stage["status"]) == ("corpus", "committed")
    assert len(stage["digest"]) == 64
    assert stage["metrics"]["documents_out"] == 3
    assert stage["metrics"]["bytes_in"] == stage["metrics"]["bytes_out"] == 1050
    listed = json.loads(run_ingot("runs", "list", "--store", str(finished.store), "--json").stdout)
    assert "demo" in [run["run"] for run in listed["runs"]]


def test_runs_are_shown_to_people(run_ingot: Any, finished: Finished) -> None:
    done = run_ingot("runs", "show", "demo", "--store", str(finished.store))
    assert done.returncode == 0
    assert "corpus" in done.stdout
    assert "committed" in done.stdout
    listed = run_ingot("runs", "list", env={"INGOT_STORE": str(finished.store)})
    assert "demo" in listed.stdout
    assert "done" in listed.stdout


def test_what_is_not_there_is_answered_with_what_is(run_ingot: Any, finished: Finished) -> None:
    store = ["--store", str(finished.store)]
    done = run_ingot("runs", "show", "other", *store)
    assert done.returncode == 2
    assert "no run 'other'; there are: " in done.stderr
    assert "demo" in done.stderr
    done = run_ingot("serve", "other", *store)
    assert done.returncode == 2
    assert "no model other; there are: none" in done.stderr
    done = run_ingot("run", str(finished.recipe), *store, "--until", "sft")
    assert done.returncode == 2
    assert "--until sft: the recipe's stages are corpus, dedup, tokenizer, tokens" in done.stderr
    models = run_ingot("models", "list", *store, "--json")
    assert (models.returncode, json.loads(models.stdout)["models"]) == (0, [])


@pytest.mark.parametrize("sign", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_an_interrupted_run_says_so_and_can_be_shown(
    run_ingot: Any, tmp_path: Path, s3: Any, sign: signal.Signals
) -> None:
    # a service that takes calls and never answers: the run waits for it while it lists its sources
    with socket.create_server(("127.0.0.1", 0)) as silent:
        (tmp_path / "r.yaml").write_text(RECIPE.replace("TEXTS", "s3://bucket/texts"))
        silent.settimeout(60)
        with started(
            [sys.executable, "-m", "ingot.services.cli", "run", "r.yaml", "--store", "store"],
            cwd=tmp_path,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "AWS_ENDPOINT_URL": f"http://127.0.0.1:{silent.getsockname()[1]}"},
        ) as run:
            silent.accept()
            run.send_signal(sign)
            _, said = run.communicate(timeout=60)
    assert run.returncode == 130
    assert said == "interrupted; the same command goes on from what is committed\n"
    shown = run_ingot("runs", "show", "demo", "--store", "store", "--json", cwd=tmp_path)
    assert json.loads(shown.stdout)["stages"][0]["status"] == "interrupted"


def test_what_nobody_foresaw_is_one_line_and_a_log(
    run_ingot: Any, finished: Finished, tmp_path: Path
) -> None:
    shutil.copytree(finished.store, tmp_path / "store")
    manifest = next((tmp_path / "store/artifacts/corpus").rglob("manifest.json"))
    body = json.loads(manifest.read_text())
    manifest.write_text(
        json.dumps({**body, "metrics": {"files": 3}})
    )  # the stage's own figures are not checked
    done = run_ingot("runs", "show", "demo", "--store", "store", cwd=tmp_path)
    assert done.returncode == 1
    [line] = done.stderr.splitlines()
    assert line.startswith("error: KeyError: ")
    assert line.endswith("all of it: .ingot/error.log")
    assert "Traceback" in (tmp_path / ".ingot/error.log").read_text()


def test_a_store_inside_a_source_is_refused_before_anything_is_written(
    run_ingot: Any, tmp_path: Path
) -> None:
    texts = tmp_path / "texts"
    texts.mkdir()
    (texts / "a.txt").write_text("a text")
    (tmp_path / "link").symlink_to(texts)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"name: demo\ncorpus: {{sources: [{{source: files, name: raw, path: {texts}}}]}}\n")
    for store in (texts, texts / "store", tmp_path / "link" / "store"):
        done = run_ingot("run", str(recipe), "--store", str(store), cwd=tmp_path)
        assert done.returncode == 2
        assert "holds the store" in done.stderr
        assert [path.name for path in texts.iterdir()] == ["a.txt"]
