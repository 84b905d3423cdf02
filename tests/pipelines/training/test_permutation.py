import numpy as np
import pytest

from ingot.pipelines.training.permutation import permute


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 16, 17, 255, 1000, 4097])
def test_every_number_stands_at_exactly_one_place(size):
    for seed in range(5):
        assert sorted(permute(np.arange(size), size, seed)) == list(range(size))


def test_a_place_is_computed_alone_and_in_any_shape():
    whole = permute(np.arange(1000), 1000, 7, 3)
    assert permute(np.array([[999, 0], [5, 5]]), 1000, 7, 3).tolist() == [
        [whole[999], whole[0]],
        [whole[5], whole[5]],
    ]


def test_another_seed_or_epoch_gives_another_order():
    orders = [tuple(permute(np.arange(500), 500, seed, epoch)) for seed in range(4) for epoch in range(4)]
    assert len(set(orders)) == len(orders)


def test_neighbours_are_scattered_evenly():
    size = 10_000
    order = permute(np.arange(size), size, 1)
    # of a random permutation: where the first tenth went, a tenth of it in each tenth (30 = one deviation)
    counts = np.histogram(order[: size // 10], bins=10, range=(0, size))[0]
    assert abs(counts - 100).max() < 50
    assert abs(np.corrcoef(np.arange(size), order)[0, 1]) < 0.05


def test_large_ranges_stay_inside():
    size = 3 * 10**12
    places = permute(np.arange(100_000), size, 5)
    assert places.min() >= 0
    assert places.max() < size
    assert len(set(places.tolist())) == 100_000


def test_the_order_of_a_seed_never_changes():
    assert permute(np.arange(8), 8, 1, 0).tolist() == [5, 6, 4, 2, 7, 0, 3, 1]
