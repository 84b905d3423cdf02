"""A seeded permutation of range(size) as arithmetic: any place of it is computed alone, and nothing is kept.

A Feistel network permutes the smallest range of 4^k numbers that holds `size`; a number that lands outside
is sent through again until it lands inside (cycle walking: Black and Rogaway, "Ciphers with Arbitrary Finite
Domains", CT-RSA 2002). A quarter of the range or more is inside: about four passes are expected at most."""

from __future__ import annotations

import numpy as np

ROUNDS = 6  # four make a pseudorandom permutation of a pseudorandom function (Luby and Rackoff, 1988)


def permute(positions: np.ndarray, size: int, *key: int) -> np.ndarray:
    """What stands at `positions` (int64, each in range(size)) in the permutation of range(size) that the
    numbers of `key` name; int64, of the same shape."""
    half = max(1, (int(size - 1).bit_length() + 1) // 2)
    keys = _round_keys(key)
    values = positions.astype(np.uint64)
    outside = np.ones(values.shape, dtype=bool)
    while outside.any():
        values[outside] = _feistel(values[outside], half, keys)
        outside = values >= size
    return values.astype(np.int64)


def shuffled_epochs(positions: range | np.ndarray, size: int, *key: int) -> np.ndarray:
    """What stands at `positions` of the endless sequence that goes through range(size) once an epoch, in
    each epoch in another order, which the numbers of `key` name; int64."""
    if isinstance(positions, range):
        positions = np.arange(positions.start, positions.stop, dtype=np.int64)
    epochs, within = np.divmod(positions, size)
    numbers = np.empty_like(within)
    for epoch in np.unique(epochs):
        chosen = epochs == epoch
        numbers[chosen] = permute(within[chosen], size, *key, int(epoch))
    return numbers


def _feistel(values: np.ndarray, half: int, keys: np.ndarray) -> np.ndarray:
    mask, shift = np.uint64((1 << half) - 1), np.uint64(half)
    left, right = values >> shift, values & mask
    for key in keys:
        left, right = right, left ^ (_mix(right ^ key) & mask)
    return (left << shift) | right


def _round_keys(key: tuple[int, ...]) -> np.ndarray:
    state = np.zeros(ROUNDS, dtype=np.uint64)
    for number in (*key, 0):
        state = _mix(state ^ np.uint64(number)) + np.arange(1, ROUNDS + 1, dtype=np.uint64)
    return state


def _mix(values: np.ndarray) -> np.ndarray:
    """The finaliser of splitmix64 (Steele, Lea and Flood, OOPSLA 2014), after a step of its sequence."""
    values = values + np.uint64(0x9E3779B97F4A7C15)
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
