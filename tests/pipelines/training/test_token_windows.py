"""Rows of tokens by arithmetic."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from made_tokens import put_tokens

from ingot.errors import IngotError
from ingot.model import IGNORED, Batch
from ingot.pipelines.store import LocalStore
from ingot.pipelines.training.dataset import shares
from ingot.pipelines.training.permutation import permute
from ingot.pipelines.training.tokens import TokenDataset

CONTEXT, ROWS, SEED = 7, 10, 3
TEXT = np.random.default_rng(0).integers(0, 70_000, 1003)
SHARDS = [TEXT[:5], TEXT[5:5], TEXT[5:600], TEXT[600:611], TEXT[611:]]  # samples lie over up to three


SPEC = {"context": CONTEXT, "rows": ROWS, "seed": SEED}


@pytest.fixture(params=["all kept", "nothing kept"])
def dataset(request: pytest.FixtureRequest, tmp_path: Path) -> TokenDataset:
    store = LocalStore(str(tmp_path))
    artifact = put_tokens(store, SHARDS, TEXT[:100], dtype="<u4")
    kept = {"all kept": 10**9, "nothing kept": 0}[request.param]
    return TokenDataset(store, {**SPEC, "tokens": artifact.key, "cache_bytes": kept})


def naive_rows(step: int) -> tuple[list[list[int]], list[list[int]]]:
    """Tokens and targets of the global batch, one row after the other."""
    count = (len(TEXT) - 1) // CONTEXT
    tokens, targets = [], []
    for position in range(step * ROWS, (step + 1) * ROWS):
        order = permute(np.arange(count), count, SEED, position // count)
        start = int(order[position % count]) * CONTEXT
        tokens.append(TEXT[start : start + CONTEXT].tolist())
        targets.append(TEXT[start + 1 : start + CONTEXT + 1].tolist())
    return tokens, targets


@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize("micro_batch", [1, 4, 100])
def test_rows_are_those_of_a_naive_reading_at_any_number_of_workers(
    dataset: TokenDataset, world: int, micro_batch: int
) -> None:
    for step in (0, 1, 13, 14, 15, 100):  # the first epoch ends in step 14
        read = [dataset.share(step, rank, world, micro_batch) for rank in range(world)]
        shares_of_ranks = [share.batches for share in read]
        assert len({len(batches) for batches in shares_of_ranks}) == 1
        assert len({batch.tokens_BT.shape for batches in shares_of_ranks for batch in batches}) == 1
        assert shares_of_ranks[0][0].tokens_BT.shape[0] <= micro_batch
        tokens = torch.cat([batch.tokens_BT for batches in shares_of_ranks for batch in batches])
        targets = torch.cat([batch.targets_BT for batches in shares_of_ranks for batch in batches])
        counts = (targets != IGNORED).all(dim=1)
        assert (targets[~counts] == IGNORED).all()
        assert (tokens[counts].tolist(), targets[counts].tolist()) == naive_rows(step)
        assert [place for share in read for place in share.positions] == list(range(ROWS))
        starts = [int(number) * CONTEXT for share in read for number in share.samples]
        assert [TEXT[start : start + CONTEXT].tolist() for start in starts] == tokens[counts].tolist()


def test_every_token_is_predicted_once_an_epoch(dataset: TokenDataset) -> None:
    numbers = dataset.numbers(range(dataset.count))
    assert sorted(numbers) == list(range(dataset.count))
    [source] = dataset.sources
    targets = source.read(np.sort(numbers).tolist()).targets_BT
    assert targets.ravel().tolist() == TEXT[1 : 1 + targets.size].tolist()
    assert len(TEXT) - 1 - targets.size < CONTEXT


def test_a_row_knows_where_its_targets_stand(dataset: TokenDataset) -> None:
    [source] = dataset.sources
    for number, targets in enumerate(source.read(range(dataset.count)).targets_BT):
        parts = [SHARDS[int(name[6:11])][start:stop] for name, start, stop in dataset.spans(number)]
        assert np.concatenate(parts).tolist() == targets.tolist()


def test_attention_may_be_kept_within_documents(tmp_path: Path) -> None:
    text = np.array([5, 6, 0, 7, 0, 8, 9, 10, 11, 12, 13, 0, 14, 15, 16])
    store = LocalStore(str(tmp_path))
    artifact = put_tokens(store, [text], text)
    spec = {**SPEC, "tokens": artifact.key, "mask_documents": True, "rows": 2}
    [batch] = TokenDataset(store, spec).share(0, 0, 1, 3).batches
    rows = {tuple(tokens): documents for tokens, documents in zip(*lists(batch), strict=True)}
    # a document begins at the end of text before it, from which its first token is predicted
    assert rows == {
        (5, 6, 0, 7, 0, 8, 9): [0, 0, 1, 1, 2, 2, 2],
        (10, 11, 12, 13, 0, 14, 15): [0] * 4 + [1] * 3,
    }
    assert batch.documents_BT is not None
    assert batch.documents_BT.dtype == torch.int32


def lists(batch: Batch) -> tuple[list[list[int]], list[list[int]]]:
    assert batch.documents_BT is not None
    return batch.tokens_BT.tolist(), batch.documents_BT.tolist()


@pytest.mark.parametrize("rows", [3, 8, 31, 32])
@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize("micro_batch", [1, 5, 8])
def test_shares_are_equal_and_cover_the_batch(rows: int, world: int, micro_batch: int) -> None:
    cut = [shares(rows, rank, world, micro_batch) for rank in range(world)]
    assert [row for ranges, _ in cut for own in ranges for row in own] == list(range(rows))
    sizes = [sum(map(len, ranges)) for ranges, _ in cut]
    assert max(sizes) - min(sizes) <= 1
    assert len({(len(ranges), filled) for ranges, filled in cut}) == 1
    assert all(len(own) <= filled <= micro_batch for ranges, filled in cut for own in ranges)


def test_less_than_one_row_is_refused(tmp_path: Path) -> None:
    store = LocalStore(str(tmp_path))
    artifact = put_tokens(store, [TEXT[:CONTEXT]], TEXT[:100], dtype="<u4")
    with pytest.raises(IngotError, match=r"its train shards hold 7 tokens, less than one row of 7 \+ 1"):
        TokenDataset(store, {**SPEC, "tokens": artifact.key})
