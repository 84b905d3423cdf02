"""Conversations made from the corpus, and fine-tuning on the assistant's words alone."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pyarrow
import pytest
import torch
from shares_of_ranks import samples_of

from ingot.model import IGNORED, Batch
from ingot.pipelines.answers import dealt, padded
from ingot.pipelines.artifact import File, put_table, read_table
from ingot.pipelines.conversations import ConversationDataset, first_functions, make_functions
from ingot.pipelines.functions import split_of
from ingot.pipelines.tokenizer import load_tokenizer
from ingot.pipelines.units import Workspace

if TYPE_CHECKING:
    from conftest import SmallPath


@dataclass(frozen=True)
class Made:
    files: dict[str, File]
    counts: dict[str, int]
    table: pyarrow.Table


MakeFunctions = Callable[..., Made]


@pytest.fixture(scope="module")
def make(code_path: SmallPath, code_workspace: Callable[[str], Workspace]) -> MakeFunctions:
    """`make(context, documents=1000)`: the functions of the code corpus that fit into so many tokens."""

    def make(context: int, documents: int = 1000) -> Made:
        workspace = code_workspace(f"sft/functions-{context}-{documents}")
        files, counts = make_functions(workspace, code_path.inputs, context, documents)
        [name] = files
        return Made(files, counts, read_table(code_path.store, files[name], name))

    return make


@pytest.fixture(scope="module")
def made(make: MakeFunctions) -> Made:
    return make(120)


def test_every_function_is_counted_once(made: Made) -> None:
    # 160 modules of 20 functions and a copy of one, less two that dedup removed; the broken one is counted.
    assert made.counts == {
        "documents_parsed": 159,
        "documents_failed": 1,
        "functions": 159 * 20,
        "functions_long": 0,
        "functions_distinct": 158 * 20,
    }
    assert made.table.num_rows == 158 * 20


def test_documents_that_dedup_removed_and_other_files_give_nothing(made: Made, code_path: SmallPath) -> None:
    corpus, dedup = code_path.corpus, code_path.dedup
    paths = {
        row["id"]: row["path"]
        for name in corpus.names("documents/")
        for row in corpus.table(name).to_pylist()
    }
    removed = {
        identity for name in dedup.names("removed/") for identity in dedup.table(name)["id"].to_pylist()
    }
    documents = set(made.table["document"].to_pylist())
    assert len(removed) == 2
    assert not documents & removed
    assert all(paths[document].endswith(".py") for document in documents)


def test_equal_bodies_are_kept_once_and_in_the_order_of_their_hashes(made: Made) -> None:
    bodies = made.table["body"].to_pylist()
    assert bodies == sorted(set(bodies))


def test_splits_share_no_document(made: Made) -> None:
    split_by_document: dict[str, set[str]] = {}
    for row in made.table.select(["document", "split"]).to_pylist():
        split_by_document.setdefault(row["document"], set()).add(row["split"])
    assert all(splits == {split_of(document)} for document, splits in split_by_document.items())
    assert {split for splits in split_by_document.values() for split in splits} == {
        "sft",
        "preference",
        "held-out",
    }


def test_prompt_and_answer_are_the_conversation(made: Made, code_path: SmallPath) -> None:
    encoder = load_tokenizer(code_path.tokenizer)
    for row in made.table.slice(0, 50).to_pylist():
        messages = json.loads(row["messages"])
        ids, mask = encoder.conversation(messages)
        assert row["prompt"] + row["answer"] == ids
        assert [False] * len(row["prompt"]) + [True] * len(row["answer"]) == mask
        assert row["prompt"][-1] == encoder.assistant
        assert row["answer"][-1] == encoder.stop
        assert encoder.decode(row["answer"]) == messages[1]["content"]


def test_conversations_longer_than_the_context_are_left_out(made: Made, make: MakeFunctions) -> None:
    lengths = {row["body"]: len(row["prompt"]) + len(row["answer"]) for row in made.table.to_pylist()}
    context = sorted(lengths.values())[len(lengths) // 2]
    shorter = make(context)
    assert shorter.counts["functions_long"] > 0
    assert all(len(row["prompt"]) + len(row["answer"]) <= context for row in shorter.table.to_pylist())
    fitting = {body for body, length in lengths.items() if length <= context}
    assert fitting <= set(shorter.table["body"].to_pylist())


def test_a_share_of_the_documents_can_be_read(made: Made, make: MakeFunctions) -> None:
    fewer = make(120, documents=80)
    assert 60 <= fewer.counts["documents_parsed"] <= 100
    assert set(fewer.table["document"].to_pylist()) < set(made.table["document"].to_pylist())


def test_the_first_functions_are_the_same_however_many_are_asked_for(
    made: Made, code_path: SmallPath
) -> None:
    few, more = (first_functions(code_path.store, made.files, "sft", most) for most in (10, 10_000))
    assert few.num_rows == 10
    assert few == more.slice(0, 10).combine_chunks()
    assert set(more["split"].to_pylist()) == {"sft"}


def test_targets_are_the_answer_and_its_stop_token_alone() -> None:
    tokens, targets = padded([([7, 8, 9], [1, 2, 3]), ([7], [4])])
    assert tokens.tolist() == [[7, 8, 9, 1, 2], [7, 0, 0, 0, 0]]
    assert targets.tolist() == [
        [IGNORED, IGNORED, 1, 2, 3],
        [4, IGNORED, IGNORED, IGNORED, IGNORED],
    ]
    assert tokens.dtype == targets.dtype == torch.int64


def test_rows_that_fill_up_count_nothing() -> None:
    tokens, targets = padded([([7], [4, 5])], rows=3)
    assert tokens.tolist() == [[7, 4], [0, 0], [0, 0]]
    assert targets.tolist() == [[4, 5], [IGNORED] * 2, [IGNORED] * 2]
    assert padded([], rows=2)[1].tolist() == [[IGNORED], [IGNORED]]


def test_a_steps_conversations_are_the_same_for_any_number_of_workers(
    made: Made, code_path: SmallPath
) -> None:
    conversations = first_functions(code_path.store, made.files, "sft", 50)
    file = put_table(code_path.store, conversations)
    dataset = ConversationDataset(code_path.store, {"conversations": file.to_json(), "rows": 12, "seed": 3})
    answers = conversations["answer"].to_pylist()
    seen: list[list[int]] = []
    for step in range(8):
        whole = dataset.share(step, 0, 1, micro_batch=12)
        alone = answers_in(whole.batches)
        assert [answers[number] for number in whole.samples] == alone
        for world, micro_batch in ((1, 5), (2, 4), (5, 2)):
            read = [dataset.share(step, rank, world, micro_batch) for rank in range(world)]
            assert samples_of(read) == samples_of([whole])
            shares = [share.batches for share in read]
            assert len({len(share) for share in shares}) == 1
            assert len({len(batch.tokens_BT) for share in shares for batch in share}) == 1
            assert max(len(batch.tokens_BT) for share in shares for batch in share) <= micro_batch
            assert sorted(answer for share in shares for answer in answers_in(share)) == sorted(alone)
        assert answers_in(dataset.share(step, 0, 1, micro_batch=12).batches) == alone
        seen += alone
    # 96 rows of 50 conversations: every one once in the first epoch, and most of them again
    counts = [seen.count(answer) for answer in answers]
    assert set(counts) == {1, 2}


def answers_in(batches: list[Batch]) -> list[list[int]]:
    """The targets that count, row by row."""
    rows = [row[row != IGNORED].tolist() for batch in batches for row in batch.targets_BT]
    return [row for row in rows if row]


def test_sharing_out_by_length_leaves_little_padding_and_like_shares() -> None:
    lengths = np.random.default_rng(1).integers(10, 250, 64)
    order = dealt(lengths, 4)
    assert sorted(order) == list(range(64))
    shares = lengths[order].reshape(4, 16)
    assert (np.diff(shares, axis=1) >= 0).all()
    assert np.ptp(shares, axis=0).max() < 60
