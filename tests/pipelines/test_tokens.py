"""Shards hold every kept document once, and the index finds it there."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ingot.errors import IngotError
from ingot.pipelines import places as module
from ingot.pipelines.artifact import Artifact
from ingot.pipelines.places import Places
from ingot.pipelines.shards import Span
from ingot.pipelines.store import LocalStore
from ingot.pipelines.tokenizer import SPECIAL, load_tokenizer
from ingot.pipelines.tokens import held_out

SETTINGS = {"held_out": 0.2}


@pytest.fixture(scope="module")
def tokens(small_path: Any, run_one_stage: Callable[..., Artifact]) -> Artifact:
    return run_one_stage(small_path.store, "tokens", SETTINGS, small_path.inputs)


@pytest.fixture(scope="module")
def index(tokens: Artifact) -> list[dict[str, Any]]:
    return [row for name in tokens.names("index/") for row in tokens.table(name).to_pylist()]


@pytest.fixture(scope="module")
def texts(small_path: Any) -> dict[str, str]:
    """Document → text, of what dedup kept."""
    corpus, dedup = small_path.corpus, small_path.dedup
    kept = {row for name in dedup.names("kept/") for row in dedup.table(name)["id"].to_pylist()}
    rows = [row for name in corpus.names("documents/") for row in corpus.table(name).to_pylist()]
    return {row["id"]: row["text"] for row in rows if row["id"] in kept}


def shard(tokens: Artifact, name: str) -> np.ndarray:
    return np.frombuffer(
        tokens.read(name), dtype=np.dtype(tokens.json("meta.json")["dtype"]).newbyteorder("<")
    )


def test_every_kept_document_is_in_the_index_once(index: list[dict[str, Any]], texts: dict[str, str]) -> None:
    assert [row["id"] for row in index] == list(texts)
    assert [row["bytes"] for row in index] == [len(text.encode()) for text in texts.values()]


def test_every_document_is_where_the_index_says(
    tokens: Artifact, index: list[dict[str, Any]], texts: dict[str, str], small_path: Any
) -> None:
    encoder = load_tokenizer(small_path.tokenizer)
    for row in index:
        ids = shard(tokens, f"{row['split']}/{row['shard']:05d}.bin")
        place = slice(row["offset"], row["offset"] + row["tokens"])
        assert ids[place].tolist() == encoder.encode_batch([texts[row["id"]]])[0]
        assert ids[row["offset"] + row["tokens"]] == encoder.end_of_text


def test_between_documents_and_nowhere_else_is_the_end_of_text(
    tokens: Artifact, index: list[dict[str, Any]]
) -> None:
    meta = tokens.json("meta.json")
    for split in ("train", "held-out"):
        ids = np.concatenate([shard(tokens, name) for name, _ in meta["shards"][split]])
        documents = [row for row in index if row["split"] == split]
        assert int((ids == meta["end_of_text"]).sum()) == len(documents)
        assert len(ids) == sum(row["tokens"] + 1 for row in documents)
        assert int(ids.max()) < meta["vocabulary"] == 512
        if len(shard(tokens, meta["shards"][split][0][0])):
            assert shard(tokens, meta["shards"][split][0][0])[-1] == meta["end_of_text"]


def test_the_id_alone_decides_the_split(index: list[dict[str, Any]]) -> None:
    for row in index:
        assert row["split"] == ("held-out" if held_out(row["id"], 0.2) else "train")
    share = sum(held_out(f"{number:032x}", 0.2) for number in range(5000)) / 5000
    assert 0.18 < share < 0.22
    # who is held out at a smaller share is held out at a larger one
    assert all(held_out(f"{n:032x}", 0.2) for n in range(500) if held_out(f"{n:032x}", 0.1))


def test_the_figures_add_up(tokens: Artifact, index: list[dict[str, Any]]) -> None:
    meta, metrics = tokens.json("meta.json"), tokens.metrics
    for split, total in (("train", metrics["train_tokens"]), ("held-out", metrics["held_out_tokens"])):
        assert sum(count for _, count in meta["shards"][split]) == total > 0
        assert [name for name, _ in meta["shards"][split]] == tokens.names(f"{split}/")
        for name, count in meta["shards"][split]:
            assert tokens.files[name].tokens == count == tokens.files[name].bytes // 2
    assert metrics["tokens"] == metrics["train_tokens"] + metrics["held_out_tokens"]
    assert metrics["documents"] == len(index)
    text = sum(row["bytes"] for row in index)
    assert metrics["bytes_per_token"] == pytest.approx(text / sum(row["tokens"] for row in index))


def test_what_no_text_used_and_what_each_source_takes_is_told(
    tokens: Artifact, index: list[dict[str, Any]], small_path: Any
) -> None:
    meta = tokens.json("meta.json")
    used = {
        int(id) for split in meta["shards"].values() for name, _ in split for id in set(shard(tokens, name))
    }
    words = meta["vocabulary"] - len(SPECIAL)
    assert tokens.metrics["unused_tokens"] == words - len(used - {meta["end_of_text"]})
    sources = {
        row["id"]: row["source"]
        for name in small_path.corpus.names("documents/")
        for row in small_path.corpus.table(name, ["id", "source"]).to_pylist()
    }
    found = tokens.metrics["bytes_per_token_by_source"]
    assert found.keys() == {sources[row["id"]] for row in index}
    for source, figure in found.items():
        own = [row for row in index if sources[row["id"]] == source]
        assert figure == sum(row["bytes"] for row in own) / sum(row["tokens"] for row in own)


def test_the_digest_is_the_same_on_one_worker(
    tokens: Artifact, small_path: Any, run_one_stage: Callable[..., Artifact]
) -> None:
    for key in list(small_path.store.list(f"{tokens.key}/")):
        small_path.store.delete(key)
    again = run_one_stage(small_path.store, "tokens", SETTINGS, small_path.inputs, workers=1)
    assert again.digest == tokens.digest
    # the golden digest: where it changes, tokens.VERSION (or tokenizer's, or corpus's) must have changed
    assert tokens.digest == "32559c45660987ea642ddd5dd18181ca6490479dbaad3f83b45483461bb6fcae"


def test_a_document_is_found_by_its_id(
    tokens: Artifact, index: list[dict[str, Any]], small_path: Any
) -> None:
    places = Places(tokens)
    position = {"train": 0, "held-out": 0}
    for row in index:
        place = places.of(row["id"])
        assert place is not None
        assert (place.document, place.source) == (row["id"], "small")
        assert place.shard == f"{row['split']}/{row['shard']:05d}.bin"
        assert (place.offset, place.tokens) == (row["offset"], row["tokens"])
        assert place.position == position[row["split"]]  # they follow each other
        position[row["split"]] += row["tokens"] + 1
    names = small_path.dedup.names("removed/")
    gone = [row for name in names for row in small_path.dedup.table(name)["id"].to_pylist()]
    assert gone
    assert not any(places.of(document) for document in (*gone, "0" * 32, "f" * 32))


def test_the_documents_of_a_part_of_a_shard_are_found(tokens: Artifact, index: list[dict[str, Any]]) -> None:
    places = Places(tokens)
    name = "train/00001.bin"
    own = [row for row in index if (row["split"], row["shard"]) == ("train", 1)]
    second, third = own[1], own[2]
    end_of_second = second["offset"] + second["tokens"]
    for start, stop, found in (
        (second["offset"], second["offset"] + 1, [second]),
        (second["offset"] - 1, second["offset"] + 1, own[:2]),
        (end_of_second, end_of_second + 1, [second]),  # its end-of-text
        (end_of_second, end_of_second + 2, [second, third]),
        (0, tokens.files[name].tokens, own),
    ):
        within = places.within(Span(name, start, stop))
        assert [place.document for place in within] == [row["id"] for row in found]


def test_a_lookup_of_several_files_is_read_in_small_parts(
    index: list[dict[str, Any]],
    small_path: Any,
    run_one_stage: Callable[..., Artifact],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "LOOKUP_ENTRIES", 20)
    monkeypatch.setattr(module, "READ_ENTRIES", 3)
    cut = run_one_stage(small_path.store, "tokens", {"held_out": 0.21}, small_path.inputs)
    assert len(cut.names("lookup/")) == 3
    places = Places(cut)
    for row in index:
        place = places.of(row["id"])
        assert place is not None
        assert place.document == row["id"]
    assert places.of("7" * 32) is None


@pytest.mark.parametrize(
    ("share", "reason"),
    [
        (
            1e-9,
            r"none of 57 documents fell to the held-out split, .* raise tokens\.held_out, .* split: below",
        ),
        (
            1 - 1e-9,
            r"none of 57 documents fell to the train split, .* lower tokens\.held_out, .* split: below",
        ),
    ],
)
def test_a_split_without_documents_is_refused(
    small_path: Any, run_one_stage: Callable[..., Artifact], share: float, reason: str
) -> None:
    with pytest.raises(IngotError, match=reason):
        run_one_stage(small_path.store, "tokens", {"held_out": share}, small_path.inputs)


def test_one_text_file_is_a_corpus_where_it_is_split(
    small_path: Any, run_one_stage: Callable[..., Artifact], keep: Callable[..., Artifact], tmp_path: Path
) -> None:
    store, folder = small_path.store, tmp_path / "one"
    folder.mkdir()
    text = "\n\n".join(f"Speaker {number}:\nLine {number} of a play." for number in range(60))
    (folder / "play.txt").write_text(text)

    def tokens(**settings: Any) -> Artifact:
        source = {"source": "files", "name": "play", "path": str(folder), **settings}
        corpus = run_one_stage(store, "corpus", {"sources": [source]})
        inputs = {**small_path.inputs, "corpus": corpus, "dedup": keep(store, corpus)}
        return run_one_stage(store, "tokens", SETTINGS, inputs)

    with pytest.raises(IngotError, match=r"dedup left a single document, .* split: below a files source"):
        tokens()
    made = tokens(split="blank-lines")
    assert made.metrics["documents"] == 60
    assert made.metrics["train_tokens"] > made.metrics["held_out_tokens"] > 0


def test_a_damaged_input_is_named(
    small_path: Any, run_one_stage: Callable[..., Artifact], tmp_path: Any
) -> None:
    copy = LocalStore(str(tmp_path))
    for key in small_path.store.list(""):
        copy.create(key, small_path.store.read(key))
    broken = small_path.corpus.files["documents/000002.parquet"].pieces[0].key
    copy.delete(broken)
    with pytest.raises(IngotError, match=f"documents is damaged: its object {broken} is missing; restore"):
        run_one_stage(copy, "tokens", {"held_out": 0.3}, small_path.inputs)
