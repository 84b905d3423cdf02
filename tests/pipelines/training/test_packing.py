"""Best-fit packing: no document is cut without need, and rows hold what the plan says."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from made_tokens import put_tokens
from shares_of_ranks import samples_of

from ingot.model import IGNORED
from ingot.pipelines.artifact import put_json
from ingot.pipelines.store import LocalStore
from ingot.pipelines.training.packing import best_fit, plan_shard
from ingot.pipelines.training.tokens import TokenDataset

CONTEXT, ROWS = 16, 6
END = 0


def rows_of(lengths: list[int], context: int) -> list[list[tuple[int, int]]]:
    """(start, length) of the pieces of each row."""
    planned, count = best_fit(np.array(lengths, np.int64), context)
    rows: list[list[tuple[int, int]]] = [[] for _ in range(count)]
    for row, start, length in planned.tolist():
        rows[row].append((start, length))
    return rows


def test_the_longest_comes_first_and_goes_where_the_least_room_is() -> None:
    # 9 and 7 open rows, and so does 4; then 2 fits best beside 7, and 1 into what is left there
    assert rows_of([4, 9, 1, 7, 2], 10) == [[(4, 9)], [(14, 7), (21, 2), (13, 1)], [(0, 4)]]
    assert rows_of([10, 10], 10) == [[(0, 10)], [(10, 10)]]
    assert rows_of([], 10) == []


def test_what_is_longer_than_a_row_gives_full_rows_and_a_rest() -> None:
    assert rows_of([3, 25], 10) == [[(3, 10)], [(13, 10)], [(23, 5), (0, 3)]]
    assert rows_of([20], 10) == [[(0, 10)], [(10, 10)]]


@pytest.mark.parametrize("seed", range(5))
def test_every_token_is_in_one_row_and_nothing_is_cut_that_fits(seed: int) -> None:
    lengths = np.random.default_rng(seed).geometric(0.08, 300).tolist()
    rows = rows_of(lengths, CONTEXT)
    begins = np.cumsum([0, *lengths])
    pieces = sorted((start, start + length) for row in rows for start, length in row)
    assert pieces[0][0] == 0
    assert pieces[-1][1] == sum(lengths)
    assert all(before[1] == after[0] for before, after in pairwise(pieces))
    for start, stop in pieces:
        document = int(np.searchsorted(begins, start, side="right")) - 1
        assert stop <= begins[document + 1]
        whole = (start, stop) == (begins[document], begins[document + 1])
        assert whole or lengths[document] > CONTEXT
    filled = sorted(sum(length for _, length in row) for row in rows)
    assert filled[-1] <= CONTEXT
    assert filled[0] + filled[1] > CONTEXT  # or one of the two rows would not have been opened


@pytest.fixture
def documents() -> list[list[np.ndarray]]:
    """Of two shards: texts, each with its end-of-text."""
    draw = np.random.default_rng(4)
    lengths = [draw.geometric(0.12, 40), draw.geometric(0.05, 25)]
    return [[np.append(draw.integers(1, 299, size), END) for size in of_shard] for of_shard in lengths]


@pytest.fixture
def packed(tmp_path: Path, documents: list[list[np.ndarray]]) -> TokenDataset:
    store = LocalStore(str(tmp_path))
    shards = [np.concatenate(of_shard) for of_shard in documents]
    artifact = put_tokens(store, shards, shards[0])
    plans = []
    for number in range(len(shards)):
        index = artifact.files[f"index/{number:05d}.parquet"].to_json()
        plans.append(
            {"shard": f"train/{number:05d}.bin", **plan_shard(store, {"index": index, "context": CONTEXT})}
        )
    spec = {
        "tokens": artifact.key,
        "context": CONTEXT,
        "rows": ROWS,
        "seed": 1,
        "plans": put_json(store, plans).to_json(),
        "mask_documents": True,
        "cache_bytes": 0,
    }
    return TokenDataset(store, spec)


def test_an_epoch_of_rows_holds_every_document_from_its_end_of_text_on(
    packed: TokenDataset, documents: list[list[np.ndarray]]
) -> None:
    rows = packed.sources[0].read(range(packed.count))
    assert rows.documents_BT is not None
    whole: list[tuple[int, ...]] = []
    for tokens, targets, numbers in zip(rows.tokens_BT, rows.targets_BT, rows.documents_BT, strict=True):
        assert numbers[0] == 0
        assert set(np.diff(numbers).tolist()) <= {0, 1}
        for number in range(numbers[-1] + 1):
            own = numbers == number
            if (targets[own] == IGNORED).any():  # padding: at the end, with a number of its own
                assert number == numbers[-1]
                assert (targets[own] == IGNORED).all()
                continue
            assert tokens[own][1:].tolist() == targets[own][:-1].tolist()
            if tokens[own][0] == END and targets[own][-1] == END:
                whole.append(tuple(targets[own].tolist()))
    expected = [tuple(text.tolist()) for of_shard in documents for text in of_shard]
    assert sorted(whole) == sorted(text for text in expected if len(text) <= CONTEXT)
    targets = rows.targets_BT[rows.targets_BT != IGNORED]
    assert sorted(targets.tolist()) == sorted(token for text in expected for token in text)


def test_a_rest_follows_the_token_before_it(packed: TokenDataset, documents: list[list[np.ndarray]]) -> None:
    text = np.concatenate(documents[1])
    seen = 0
    rows = packed.sources[0].read(range(packed.count))
    for number in range(packed.count):
        place = 0
        for shard, start, stop in packed.spans(number):
            before = text[start - 1] if start else END
            if shard == "train/00001.bin":
                assert rows.tokens_BT[number, place] == before
                seen += before != END
            place += stop - start
    assert seen  # some were longer than a row


@pytest.mark.parametrize("world", [1, 2, 3])
def test_any_number_of_workers_reads_the_same_rows(packed: TokenDataset, world: int) -> None:
    for step in (0, 7):
        shares = [packed.share(step, rank, world, 2) for rank in range(world)]
        numbers = packed.numbers(range(step * ROWS, (step + 1) * ROWS))
        assert samples_of(shares) == numbers.tolist()
        rows = packed.sources[0].read(numbers.tolist())
        read = [batch for share in shares for batch in share.batches]
        real = [(batch.targets_BT != IGNORED).any(1) for batch in read]
        for name in ("tokens_BT", "targets_BT", "documents_BT"):
            parts = [getattr(batch, name)[own].tolist() for batch, own in zip(read, real, strict=True)]
            assert [row for part in parts for row in part] == getattr(rows, name).tolist()


def test_padding_is_counted(packed: TokenDataset) -> None:
    rows = packed.sources[0].read(range(packed.count))
    filled = sum(plan["filled"] for plan in packed.sources[0].plans)  # type: ignore[attr-defined]
    assert filled == (rows.targets_BT != IGNORED).sum()
    assert sum(plan["cut"] for plan in packed.sources[0].plans) > 0  # type: ignore[attr-defined]
