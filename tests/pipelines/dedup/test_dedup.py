"""The dedup stage as a whole, on Ray."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import dedup_reference as reference
import numpy as np
import pytest
import ray
from datasketch import MinHash, MinHashLSH
from dedup_corpora import documents_table, make_corpus, name_of, planted_pair, unique_words
from dedup_workspaces import InProcess, Quiet
from units_of_work import unhurried

from ingot.pipelines import dedup
from ingot.pipelines.artifact import Artifact, File, commit, digest_of, put_table, read_table
from ingot.pipelines.dedup.rows import KINDS
from ingot.pipelines.sections import Dedup
from ingot.pipelines.store import LocalStore, Store, open_store
from ingot.pipelines.units import Unit, Workspace

# Of `oddities`. Raise VERSION whenever this changes: an artifact of the same name would hold other bytes.
GOLDEN = (3, "74f1aec97e6033ebc8b932d5a8d3a0da4fb2ef8fd80d9d55708ea753f650c098")
STEPS = (
    *(
        "keys",
        "exact",
        "gone",
        "sign",
        "candidates",
        "ship",
        "verify",
        "settle",
        "exact-follow",
        "write",
        "examples",
    ),
)


DRIVER = str(Path(__file__).with_name("dedup_driver.py"))


class Shuffled(Workspace):
    """Runs the units of every step in another order."""

    def run(self, step: str, units: Sequence[Unit], *words: Any, **named: Any) -> list[dict[str, Any]]:
        order = random.Random(step).sample(range(len(units)), len(units))
        records = super().run(step, [units[index] for index in order], *words, **named)
        return [records[order.index(index)] for index in range(len(units))]


class Unhurried(Workspace):
    """Every unit takes a second longer."""

    def run(self, step: str, units: Sequence[Unit], work: Any) -> list[dict[str, Any]]:
        return super().run(step, units, partial(unhurried, work))


@dataclass(frozen=True)
class Result:
    """What the stage said of every document, by path."""

    removed: dict[str, tuple[str, float, str]]  # (witness, similarity, kind)
    kept: dict[str, int]  # copies
    digest: str
    metrics: Mapping[str, Any]


def deduplicate(
    store: Store,
    corpus: Artifact,
    key: str,
    workspace: type[Workspace] = Workspace,
    workers: int = 2,
    **settings: Any,
) -> Result:
    place = workspace(store, f"artifacts/dedup/{key}", Quiet(), workers)
    outcome = dedup.run(place, Dedup(**settings), {"corpus": corpus})
    paths: dict[str, str] = {}
    removed, kept = {}, {}
    for name in corpus.names("documents/"):
        documents = corpus.table(name, ["id", "path"])
        paths |= dict(zip(*(documents[column].to_pylist() for column in ("id", "path")), strict=True))
    for name in corpus.names("documents/"):
        gone, stay = (
            read_table(store, outcome.files[name.replace("documents", table)], name).to_pylist()
            for table in ("removed", "kept")
        )
        for row in gone:
            removed[paths[row["id"]]] = (paths[row["witness_id"]], row["similarity"], row["kind"])
        kept |= {paths[row["id"]]: row["copies"] for row in stay}
        order = corpus.table(name, ["id"])["id"].to_pylist()
        for part in (gone, stay):
            assert [row["id"] for row in part] == [
                name for name in order if name in {row["id"] for row in part}
            ]
        assert len(gone) + len(stay) == len(order)
    return Result(removed, kept, digest_of(outcome.files), outcome.metrics)


def check_by_definition(
    texts: Mapping[str, str], result: Result, threshold: float = 0.8, ngram: int = 5
) -> None:
    """What must hold of every result, whatever was found."""
    assert result.removed.keys() | result.kept.keys() == texts.keys()
    assert not result.removed.keys() & result.kept.keys()
    stands_for = dict.fromkeys(result.kept, 1)
    for path, (witness, similarity, kind) in result.removed.items():
        stands_for[witness] += 1  # KeyError: a witness that is not kept
        better, worse = (
            (-len(texts[witness].encode()), name_of(witness)),
            (-len(texts[path].encode()), name_of(path)),
        )
        equal = reference.normalise(texts[path]) == reference.normalise(texts[witness])
        assert kind == ("exact" if equal else "near")
        if kind == "exact":
            assert similarity == 1
            assert better < worse
        else:
            assert similarity == reference.jaccard(texts[path], texts[witness], ngram) >= threshold
    assert result.kept == stands_for

    def size(paths: Iterable[str]) -> int:
        return sum(len(texts[path].encode()) for path in paths)

    funnel = result.metrics["funnel"]
    assert [step["step"] for step in funnel] == ["takedown", "url", "exact", "near"]
    for before, after in pairwise(funnel):
        assert [before[f"{what}_out"] for what in ("documents", "bytes")] == [
            after[f"{what}_in"] for what in ("documents", "bytes")
        ]
    assert (funnel[0]["documents_in"], funnel[0]["bytes_in"]) == (len(texts), size(texts))
    assert (funnel[-1]["documents_out"], funnel[-1]["bytes_out"]) == (len(result.kept), size(result.kept))

    by_kind = {kind: [path for path, gone in result.removed.items() if gone[2] == kind] for kind in KINDS}
    assert {name: result.metrics[name] for name in dedup.TOTALS} == {
        "documents_in": len(texts),
        "documents_out": len(result.kept),
        "bytes_in": size(texts),
        "bytes_out": size(result.kept),
        **{f"removed_{kind}": len(paths) for kind, paths in by_kind.items()},
        **{f"removed_bytes_{kind}": size(paths) for kind, paths in by_kind.items()},
    }


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> LocalStore:
    return LocalStore(str(tmp_path_factory.mktemp("dedup")))


@dataclass(frozen=True)
class Planted:
    """Pairs of documents of known similarity, chains of near duplicates and exact copies, shuffled."""

    texts: dict[str, str]
    pairs: list[tuple[str, str, float]]
    corpus: Artifact
    result: Result


@pytest.fixture(scope="module")
def planted(ray_local: None, store: LocalStore) -> Planted:
    draw = random.Random(11)
    texts: dict[str, str] = {}
    pairs = []
    for wanted in (0.5, 0.65, 0.75, 0.79, 0.86, 0.9, 0.95):
        for number in range(80):
            left, right, true = planted_pair(draw, wanted, 150)
            paths = [f"{wanted}/{number}/{side}" for side in ("left", "right")]
            texts |= zip(paths, (left, right), strict=True)
            pairs.append((*paths, true))
    for number in range(20):
        words = unique_words(draw, 250)
        # neighbours at 0.848, every second at 0.717
        texts |= {f"chain/{number}/{link}": " ".join(words[12 * link : 12 * link + 150]) for link in range(5)}
        text = " ".join(words)
        texts |= {f"copy/{number}/{link}": text.replace(" ", " " * link) for link in (1, 2, 3)}
    paths = draw.sample(sorted(texts), len(texts))
    texts = {path: texts[path] for path in paths}
    corpus = make_corpus(store, texts, files=4, key="planted")
    return Planted(texts, pairs, corpus, deduplicate(store, corpus, "planted"))


def test_every_removal_has_a_kept_witness_and_a_true_similarity(planted: Planted) -> None:
    check_by_definition(planted.texts, planted.result)


def test_planted_duplicates_are_found_and_nothing_else_goes(planted: Planted) -> None:
    removed = planted.result.removed
    found = {pair for pair in planted.pairs if pair[0] in removed or pair[1] in removed}
    expected = {pair for pair in planted.pairs if pair[2] >= 0.8}
    assert found <= expected
    near = [pair for pair in expected if pair[2] >= 0.85]
    assert len(near) == 240
    assert len(found & set(near)) >= 0.99 * len(near)
    for left, right, true in found:
        path, witness = (left, right) if left in removed else (right, left)
        assert removed[path] == (witness, pytest.approx(true), "near")


def test_the_longest_of_equal_contents_stays(planted: Planted) -> None:
    for number in range(20):
        assert planted.result.kept[f"copy/{number}/3"] == 3
        for link in (1, 2):
            assert planted.result.removed[f"copy/{number}/{link}"] == (f"copy/{number}/3", 1.0, "exact")


def test_chains_are_cut_where_the_definition_cuts_them(planted: Planted) -> None:
    chains = {path: text for path, text in planted.texts.items() if path.startswith("chain/")}
    by_id = {name_of(path): path for path in chains}
    texts = {name_of(path): text for path, text in chains.items()}
    pairs = [
        (a, b) for a in texts for b in texts if a < b and by_id[a].split("/")[1] == by_id[b].split("/")[1]
    ]
    expected = {
        by_id[name]: (by_id[witness], similarity, "near")
        for name, (witness, similarity) in reference.resolve(texts, pairs, 5, 0.8).items()
    }
    assert {path: row for path, row in planted.result.removed.items() if path in chains} == expected


def test_the_removed_are_those_that_datasketch_leads_to(planted: Planted) -> None:
    texts = {path: planted.texts[path] for pair in planted.pairs[::2] for path in pair[:2]}
    ids = {name_of(path): path for path in texts}
    banding = (planted.result.metrics["bands"], planted.result.metrics["rows"])
    lsh = MinHashLSH(num_perm=banding[0] * banding[1], params=banding)
    pairs = []
    for name, path in ids.items():
        sketch = MinHash(num_perm=banding[0] * banding[1], seed=1)
        shingles = reference.shingles(texts[path], 5)
        sketch.update_batch([shingle.to_bytes(8, "little") for shingle in shingles])
        pairs += [(name, other) for other in lsh.query(sketch)]
        lsh.insert(name, sketch)
    expected = reference.resolve({name: texts[path] for name, path in ids.items()}, pairs, 5, 0.8)
    ours = {path: row[:2] for path, row in planted.result.removed.items() if path in texts}
    assert ours == {ids[name]: (ids[witness], similarity) for name, (witness, similarity) in expected.items()}


def test_examples_show_what_was_removed(planted: Planted) -> None:
    examples, pair = planted.result.metrics["examples"], planted.result.metrics["pair"]
    assert len(examples) == 20
    for example in examples:
        assert example["id"] == name_of(example["path"])
        assert example["witness_id"] == name_of(example["witness_path"])
        assert planted.result.removed[example["path"]] == (
            example["witness_path"],
            example["similarity"],
            "near",
        )
    removed, witness = pair["removed"], pair["witness"]
    assert planted.result.removed[removed["path"]] == (witness["path"], pair["similarity"], "near")
    assert removed["text"] == planted.texts[removed["path"]][:1200]
    assert witness["text"] == planted.texts[witness["path"]][:1200]


def test_the_digest_knows_nothing_of_workers_partitions_or_order(tmp_path: Path, planted: Planted) -> None:
    store = LocalStore(str(tmp_path))
    made = make_corpus(store, planted.texts, files=4, key="planted")
    files = dict(reversed(made.files.items()))
    corpus = commit(store, "artifacts/corpus/backwards", "corpus", "backwards", files, {}, {})
    other = deduplicate(store, corpus, "backwards", Shuffled, workers=1, partitions=3)
    assert {step["processes"] for step in other.metrics["steps"].values()} == {1}
    assert other.metrics["partitions"] != planted.result.metrics["partitions"]
    assert other.digest == planted.result.digest


@pytest.mark.long
def test_nor_of_a_cluster_of_four_and_the_hash_seed_of_its_processes(
    tmp_path: Path, planted: Planted
) -> None:
    store = LocalStore(str(tmp_path))
    corpus = make_corpus(store, planted.texts, files=4, key="planted")
    env = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    env |= {"PYTHONHASHSEED": "random", "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, DRIVER, store.uri, corpus.key, "4"]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1])["digest"] == planted.result.digest


def test_what_goes_is_the_same_however_files_are_cut(store: LocalStore, planted: Planted) -> None:
    paths = random.Random(3).sample(sorted(planted.texts), len(planted.texts))
    corpus = make_corpus(store, {path: planted.texts[path] for path in paths}, files=3, key="recut")
    other = deduplicate(store, corpus, "recut", InProcess)
    assert other.removed == planted.result.removed
    assert other.kept == planted.result.kept
    assert other.metrics["examples"] == planted.result.metrics["examples"]


def test_a_run_that_goes_on_ends_as_one_that_was_never_stopped(tmp_path: Path, planted: Planted) -> None:
    store = LocalStore(str(tmp_path))
    corpus = make_corpus(store, planted.texts, files=4, key="planted")
    deduplicate(store, corpus, "planted", InProcess)
    [manifest] = [key for key in store.list("artifacts/dedup-snapshots/") if key.endswith("/manifest.json")]
    store.delete(manifest)
    kept, gone = {}, []
    for step in STEPS[3:]:  # as if it was killed while it signed, and some records of later steps were there
        records = [key for key in [*store.list("artifacts/"), *store.list("shared/")] if f"/{step}/" in key]
        assert records, step
        gone += records[::2]
        kept |= {key: store.read(key) for key in records[1::2]}
    for key in gone:
        store.delete(key)
    again = deduplicate(store, corpus, "planted", InProcess)
    assert again.digest == planted.result.digest
    assert all(store.exists(key) for key in gone)
    assert all(store.read(key) == body for key, body in kept.items())


@pytest.fixture(scope="module")
def oddities() -> dict[str, str]:
    """Documents of every sort that is treated in a way of its own."""
    draw = random.Random(12)
    first, second, _ = planted_pair(draw, 0.9, 100)
    han = [chr(0x4E00 + code) for code in draw.sample(range(20_000), 240)]
    lone = " ".join(unique_words(draw, 30))
    return {
        "empty": "",
        "blank": " \n\t ",
        "dots": "...",
        "dashes": "---",
        "dots again": " ...\n",
        "short": "Hello, world!",
        "short, in other signs": "hello world",
        "short, other words": "hello there",
        "witness": first + " . . .",
        "near": second,
        "near, copied": second.upper().replace(" ", "\n"),
        "near, copied again": "  " + second,
        "han": "".join(han[:200]),
        "han, another end": "".join(han[:195] + han[200:205]),
        "han, another text": "".join(han[100:]),
        "alone": lone,
        "reversed": " ".join(reversed(lone.split())),
    }


def test_every_sort_of_document_is_treated_as_the_documentation_says(
    ray_local: None, store: LocalStore, oddities: dict[str, str]
) -> None:
    result = deduplicate(store, make_corpus(store, oddities, files=3, key="odd"), "odd")
    similarity = reference.jaccard(oddities["near"], oddities["witness"], 5)
    han = reference.jaccard(oddities["han"], oddities["han, another end"], 5)
    near = ("near", "near, copied", "near, copied again")
    expected = {
        "empty": ("blank", 1.0, "exact"),
        "dots": ("dots again", 1.0, "exact"),
        "short, in other signs": ("short", 1.0, "near"),
        **dict.fromkeys(near, ("witness", similarity, "near")),
    }
    first, last = sorted(["han", "han, another end"], key=name_of)
    expected[last] = (first, han, "near")
    assert result.removed == expected
    assert result.kept["witness"] == 4
    check_by_definition(oddities, result)
    assert (dedup.VERSION, result.digest) == GOLDEN, result.digest


def test_a_bucket_of_s3_gives_the_same(s3: Any, oddities: dict[str, str]) -> None:
    store = open_store(s3.uri("dedup"))
    result = deduplicate(store, make_corpus(store, oddities, files=3, key="odd"), "odd", InProcess)
    assert (dedup.VERSION, result.digest) == GOLDEN, result.digest


def test_a_corpus_without_documents_is_no_fault(ray_local: None, store: LocalStore) -> None:
    result = deduplicate(store, make_corpus(store, {}, files=1, key="none"), "none")
    assert (result.removed, result.kept) == ({}, {})
    assert (result.metrics["examples"], result.metrics["pair"]) == ([], None)


@pytest.fixture(scope="module")
def grown(ray_local: None, tmp_path_factory: pytest.TempPathFactory) -> list[tuple[int, dict[str, Any]]]:
    """(bytes of text, figures of the driver) of a run over some text and over four times as much, half of it
    near duplicates."""
    env = {**os.environ, "RAY_ADDRESS": ray.get_runtime_context().gcs_address}
    found = []
    for factor in (1, 4):
        store = LocalStore(str(tmp_path_factory.mktemp(f"grown-{factor}")))
        corpus, size = grow_corpus(store, files=2 * factor)
        command = [sys.executable, DRIVER, store.uri, corpus.key, "2"]
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=240)
        assert done.returncode == 0, done.stderr
        found.append((size, json.loads(done.stdout.splitlines()[-1])))
    return found


def grow_corpus(store: LocalStore, files: int) -> tuple[Artifact, int]:
    """A corpus of files of 6 MB, and its bytes of text."""
    entries: dict[str, File] = {}
    vocabulary = np.array(unique_words(random.Random(1), 5000))
    size = 0
    for number in range(files):
        draw = np.random.Generator(np.random.PCG64(number))
        texts = [" ".join(vocabulary[draw.integers(0, 5000, 400)]) for _ in range(750)]
        texts += [text[:-50] for text in texts]
        size += sum(map(len, texts))
        paths = [f"{number}/{index}" for index in range(len(texts))]
        table = documents_table(paths, dict(zip(paths, texts, strict=True)))
        entries[f"documents/{number:05d}.parquet"] = put_table(store, table)
    return commit(store, "artifacts/corpus/grown", "corpus", "grown", entries, {}, {}), size


@pytest.mark.long
def test_the_driver_holds_records_not_data(grown: list[tuple[int, dict[str, Any]]]) -> None:
    (small, of_small), (large, of_large) = grown
    assert of_large["metrics"]["removed_near"] == 4 * of_small["metrics"]["removed_near"] == 6000
    more = of_large["peak"] - of_small["peak"]
    assert more < (large - small) / 2, f"{more:,} bytes for {large - small:,} of text"


@pytest.mark.long
def test_several_processes_share_every_step(ray_local: None, store: LocalStore) -> None:
    """Every step but the two that are one unit for all. Units take a while here, as they do where there is
    much to do: what takes milliseconds is done before a second process is there."""
    corpus, _ = grow_corpus(store, files=4)
    steps = deduplicate(store, corpus, "slowly", Unhurried).metrics["steps"]
    once = {"settle", "examples"}
    assert {name: step["processes"] for name, step in steps.items()} == {
        step: 1 if step in once else 2 for step in STEPS
    }
