"""Sources are mixed in exact proportions, at every length and by arithmetic."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from made_tokens import put_tokens
from shares_of_ranks import samples_of

from ingot.errors import IngotError
from ingot.pipelines.artifact import Artifact
from ingot.pipelines.store import LocalStore
from ingot.pipelines.training.mixture import Mixture
from ingot.pipelines.training.tokens import TokenDataset

WEIGHTS = [
    {"one": 1.0},
    {"web": 0.7, "code": 0.3},
    {"a": 1, "b": 1, "c": 1},
    {"a": 0.5, "b": 0.333, "c": 0.1, "d": 0.067},
    {"a": 97, "b": 1, "c": 1, "d": 1, "e": 0},
    {name: number + 1 for number, name in enumerate("abcdefgh")},
]


@pytest.mark.parametrize("weights", WEIGHTS, ids=str)
def test_of_every_beginning_each_source_has_its_share_to_within_less_than_one(
    weights: dict[str, float],
) -> None:
    mixture = Mixture(weights)
    sources, before = mixture(range(5000))
    assert [name for name in sorted(weights) if weights[name]] == mixture.names
    counts = np.arange(1, 5001)
    for number, name in enumerate(mixture.names):
        share = weights[name] / sum(weights.values())
        assert abs(np.cumsum(sources == number) - share * counts).max() < 1
        assert before[sources == number].tolist() == list(range(int((sources == number).sum())))


def test_any_positions_are_dealt_alone() -> None:
    mixture = Mixture({"web": 0.7, "code": 0.3})
    whole = mixture(range(2000))
    for first, last in ((0, 1), (7, 7), (993, 1700)):
        for part, of_whole in zip(mixture(range(first, last)), whole, strict=True):
            assert part.tolist() == of_whole[first:last].tolist()


@pytest.mark.parametrize(
    ("weights", "refusal"),
    [
        ({"a": 0.7, "b": 0.2}, r"a 0\.7, b 0\.2 sum to 0\.9; write shares that sum to 1, or whole numbers"),
        ({"a": -1, "b": 2}, r"a -1, b 2: a weight is .* not below 0"),
        ({"a": 0, "b": 0}, "no source has a weight above 0"),
        ({}, "no source has a weight above 0"),
        ({"a": 0.1234567, "b": 0.8765433}, r"are exact only every 10,000,000 rows; round them"),
    ],
)
def test_other_weights_are_refused(weights: dict[str, float], refusal: str) -> None:
    with pytest.raises(ValueError, match=refusal):
        Mixture(weights)


CONTEXT, ROWS = 4, 10
SIZES = {"web": [50, 31], "code": [3, 38], "rare": [9]}  # tokens of each shard


@pytest.fixture
def tokens(tmp_path: Path) -> Artifact:
    """Tokens that tell their source: below 100 web, below 200 code, then rare."""
    first = {"web": 0, "code": 100, "rare": 200}
    of_shards = [(name, size) for name, sizes in SIZES.items() for size in sizes]
    shards = [np.random.default_rng(size).integers(1, 99, size) + first[name] for name, size in of_shards]
    order = [0, 2, 4, 1, 3]  # sources may alternate
    sources = [of_shards[number][0] for number in order]
    return put_tokens(
        LocalStore(str(tmp_path)), [shards[number] for number in order], shards[0], sources=sources
    )


def dataset(tokens: Artifact, mix: dict[str, float]) -> TokenDataset:
    spec = {"tokens": tokens.key, "context": CONTEXT, "rows": ROWS, "seed": 1, "mix": mix}
    return TokenDataset(tokens.store, spec)


def sources_of(tokens_BT: np.ndarray) -> list[int]:
    assert all(len(set((row // 100).tolist())) == 1 for row in tokens_BT), "a row has two sources"
    return (tokens_BT[:, 0] // 100).tolist()  # type: ignore[no-any-return]


@pytest.mark.parametrize("world", [1, 3])
def test_rows_are_mixed_by_weight_and_each_source_goes_through_its_own(tokens: Artifact, world: int) -> None:
    mixed, seen = dataset(tokens, {"web": 0.5, "code": 0.3, "rare": 0.2}), []
    numbers: list[int] = []
    for step in range(12):
        shares = [mixed.share(step, rank, world, 2) for rank in range(world)]
        read = [
            batch.tokens_BT[(batch.targets_BT >= 0).all(1)] for share in shares for batch in share.batches
        ]
        seen += [source for rows in read for source in sources_of(rows.numpy())]
        numbers += samples_of(shares)
    for end in range(1, len(seen) + 1):
        for number, weight in enumerate((0.5, 0.3, 0.2)):
            assert abs(seen[:end].count(number) - weight * end) < 1
    counts = {"code": 40 // CONTEXT, "rare": 2, "web": 80 // CONTEXT}
    assert mixed.count == sum(counts.values())
    begin = 0
    for name in sorted(counts):  # rows are numbered by the sources' names
        own = [number for number in numbers if begin <= number < begin + counts[name]]
        epoch = own[: counts[name]]
        assert sorted(epoch) == list(range(begin, begin + counts[name]))
        begin += counts[name]
    assert numbers == mixed.numbers(range(12 * ROWS)).tolist()


def test_a_source_of_weight_0_is_not_read(tokens: Artifact) -> None:
    mixed = dataset(tokens, {"web": 1, "code": 1, "rare": 0})
    [batch] = mixed.share(0, 0, 1, ROWS).batches
    assert sorted(sources_of(batch.tokens_BT.numpy())) == [0] * 5 + [1] * 5


def test_another_source_does_not_change_the_order_of_one(tokens: Artifact) -> None:
    two, three = dataset(tokens, {"web": 1, "rare": 1}), dataset(tokens, {"web": 1, "rare": 1, "code": 2})

    def order_of_web(mixed: TokenDataset) -> list[list[int]]:
        rows = mixed.share(0, 0, 1, 100).batches[0].tokens_BT.tolist() + (
            mixed.share(1, 0, 1, 100).batches[0].tokens_BT.tolist()
        )
        return [row for row in rows if row[0] < 100]

    assert order_of_web(two)[:4] == order_of_web(three)[:4]


def test_a_source_without_a_row_is_refused(tokens: Artifact) -> None:
    spec = {"tokens": tokens.key, "context": 20, "rows": 2, "seed": 1, "mix": {"web": 1, "rare": 1}}
    with pytest.raises(IngotError, match=r"its train shards of source 'rare' hold 9 tokens, less"):
        TokenDataset(tokens.store, spec)
