"""Small inputs for the stages, and the first stages run on them once a session."""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow
import pytest

from ingot.pipelines.artifact import Artifact, File, commit, put_table
from ingot.pipelines.pipeline import run_stage
from ingot.pipelines.recipe import Recipe
from ingot.pipelines.store import LocalStore, Store
from ingot.pipelines.units import Progress, Workspace

RunStage = Callable[..., Artifact]


@dataclass(frozen=True)
class SmallPath:
    """The artifacts of the first stages on a small corpus."""

    store: LocalStore
    texts: Path
    corpus: Artifact
    dedup: Artifact
    tokenizer: Artifact

    @property
    def inputs(self) -> dict[str, Artifact]:
        return {"corpus": self.corpus, "dedup": self.dedup, "tokenizer": self.tokenizer}


def prose(seed: int, words: int) -> str:
    """Text that is the same on every machine: some frequent words, some rare ones, lines and numbers."""
    draw = random.Random(seed)
    letters = "etaoinshrdlu"
    known = ["".join(draw.choices(letters, k=draw.randint(1, 9))) for _ in range(60)]
    signs = ["\n", "\n    ", ", ", ". ", " = ", "()", " 1234", " — ", " naïve ", " 漢字 ", "\t"]
    parts = (draw.choice(known) + (draw.choice(signs) if draw.random() < 0.2 else " ") for _ in range(words))
    return "".join(parts)


@pytest.fixture(scope="session")
def small_texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of 60 text files, about 140 kB."""
    folder = tmp_path_factory.mktemp("texts")
    for number in range(60):
        path = folder / f"part-{number % 3}" / f"{number:03d}.txt"
        path.parent.mkdir(exist_ok=True)
        path.write_text(prose(number, 200 + 10 * number), encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def run_one_stage(ray_local: None) -> RunStage:
    """`run_one_stage(store, stage, settings, inputs, workers=2)`: its artifact, made on Ray."""

    def run(
        store: Store,
        stage: str,
        settings: Mapping[str, Any],
        inputs: Mapping[str, Artifact] | None = None,
        workers: int = 2,
        progress: Progress | None = None,
    ) -> Artifact:
        body: dict[str, Any] = {"corpus": {"sources": [{"source": "python-packages"}]}}
        body |= {"name": "test", "workers": workers, stage: settings}
        recipe = Recipe.model_validate(body)
        section = getattr(recipe, stage)
        told = progress or _Silence()
        artifact, _ = run_stage(recipe, store, told, stage, section, inputs or {}, lambda: None)
        return artifact

    return run


@pytest.fixture(scope="session")
def small_path(
    tmp_path_factory: pytest.TempPathFactory, small_texts: Path, run_one_stage: RunStage
) -> SmallPath:
    store = LocalStore(str(tmp_path_factory.mktemp("store")))
    source = {"source": "files", "name": "small", "path": str(small_texts)}
    corpus = run_one_stage(store, "corpus", {"sources": [source], "unit_bytes": 40_000})
    documents = [name for file in corpus.names("documents/") for name in corpus.table(file)["id"].to_pylist()]
    dedup = _keep(store, corpus, removed=documents[5::20])
    settings = {"vocabulary": 512, "sample_bytes": 100_000}
    tokenizer = run_one_stage(store, "tokenizer", settings, {"corpus": corpus, "dedup": dedup})
    return SmallPath(store, small_texts, corpus, dedup, tokenizer)


@pytest.fixture(scope="session")
def code_path(tmp_path_factory: pytest.TempPathFactory, run_one_stage: RunStage) -> SmallPath:
    """160 Python modules of 20 functions in two files, and: a copy of module 7 but for white space, a module
    with an error, a README with code in it. Dedup removed two of the modules."""
    texts = tmp_path_factory.mktemp("code")
    for number in range(160):
        (texts / f"module_{number:03d}.py").write_text(code(number, functions=20), encoding="utf-8")
    (texts / "broken.py").write_text("def broken(:\n", encoding="utf-8")
    (texts / "copy.py").write_text(code(7, functions=20).replace("return", "return "), encoding="utf-8")
    (texts / "README.md").write_text(code(160, functions=20), encoding="utf-8")
    store = LocalStore(str(tmp_path_factory.mktemp("code-store")))
    source = {"source": "files", "name": "code", "path": str(texts)}
    corpus = run_one_stage(store, "corpus", {"sources": [source], "unit_bytes": 250_000})
    ids = {
        row["path"]: row["id"]
        for name in corpus.names("documents/")
        for row in corpus.table(name, ["path", "id"]).to_pylist()
    }
    dedup = _keep(store, corpus, removed=[ids["module_003.py"], ids["module_005.py"]])
    settings = {"vocabulary": 400, "vocabulary_multiple": 16, "sample_bytes": 100_000}
    tokenizer = run_one_stage(store, "tokenizer", settings, {"corpus": corpus, "dedup": dedup})
    return SmallPath(store, texts, corpus, dedup, tokenizer)


@pytest.fixture(scope="session")
def code_workspace(code_path: SmallPath) -> Callable[[str], Workspace]:
    """`code_workspace("sft/some-test")`: a place to work in the store of `code_path`."""
    return lambda name: Workspace(code_path.store, f"artifacts/{name}", _Silence())


def code(number: int, functions: int) -> str:
    """A module of functions whose bodies follow from their prompts; no two bodies are equal."""
    draw = random.Random(number)
    nouns = ["apple", "bridge", "cloud", "door", "engine", "forest", "garden", "house", "island", "jacket"]
    signs = {"add": "+", "subtract": "-", "multiply": "*", "divide": "/"}
    parts = []
    for count in range(functions):
        verb, (first, second) = draw.choice(list(signs)), draw.sample(nouns, 2)
        parts.append(
            f"def {verb}_{first}_{second}({first}, {second}):\n"
            f'    """{verb.capitalize()}s the {second} and the {first}."""\n'
            f"    return {first} {signs[verb]} {second} + {number * functions + count}\n"
        )
    return "\n\n".join(parts)


@pytest.fixture(scope="session")
def keep() -> Callable[..., Artifact]:
    """`keep(store, corpus, removed=[…])`: what the dedup stage would commit if it removed these documents."""
    return _keep


def _keep(store: Store, corpus: Artifact, removed: Collection[str] = ()) -> Artifact:
    files: dict[str, File] = {}
    count = size = 0
    for name in corpus.names("documents/"):
        rows = corpus.table(name, ["id", "text"]).to_pylist()
        kept = [row for row in rows if row["id"] not in removed]
        gone = [row["id"] for row in rows if row["id"] in removed]
        ids = pyarrow.array([row["id"] for row in kept], pyarrow.string())
        copies = pyarrow.array([1] * len(kept), pyarrow.int64())
        witnesses = {
            "id": gone,
            "witness_id": gone,
            "similarity": [1.0] * len(gone),
            "kind": ["exact"] * len(gone),
        }
        files[name.replace("documents/", "kept/")] = put_table(
            store, pyarrow.table({"id": ids, "copies": copies})
        )
        files[name.replace("documents/", "removed/")] = put_table(store, pyarrow.table(witnesses))
        count += len(kept)
        size += sum(len(row["text"].encode()) for row in kept)
    metrics = {"documents_out": count, "bytes_out": size}
    return commit(store, f"artifacts/dedup/{count}-{size}", "dedup", "made", files, metrics, {})


class _Silence:
    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *words, **figures: None
