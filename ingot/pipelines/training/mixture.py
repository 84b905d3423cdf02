"""Several sources in one endless sequence, in exact proportions and by arithmetic alone.

The sequence repeats a pattern in which every source stands as often as its weight says: for 0.7 and 0.3 a
pattern of ten places, seven and three. Within the pattern the places are dealt such that of the first n each
source has n times its weight to within less than one, for every n: the chairman assignment problem, with the
algorithm of Tijdeman (Discrete Mathematics 32, 1980): of the sources that may have the next place without
having too much, the one that would soonest have too little gets it."""

from __future__ import annotations

import heapq
import math
from collections.abc import Mapping
from fractions import Fraction

import numpy as np

MOST_PLACES = 100_000  # of a pattern


class Mixture:
    """Deals the places of a sequence to sources. `weights`: shares that sum to 1, or whole numbers as parts
    (7 to 3); a source of weight 0 gets none. Raises ValueError for others."""

    def __init__(self, weights: Mapping[str, float]) -> None:
        parts = _parts(weights)
        self.names = sorted(parts)
        counts = [parts[name] for name in self.names]
        self._counts = np.array(counts, np.int64)
        self._pattern = _dealt(counts)
        self._before = np.empty(len(self._pattern), np.int64)  # places of the same source before each place
        for number, count in enumerate(counts):
            self._before[self._pattern == number] = np.arange(count)

    def __call__(self, positions: range) -> tuple[np.ndarray, np.ndarray]:
        """Of each position the source (its number in `names`) and how many earlier positions are that
        source's; both int64."""
        rounds, places = np.divmod(
            np.arange(positions.start, positions.stop, dtype=np.int64), len(self._pattern)
        )
        sources = self._pattern[places]
        return sources, rounds * self._counts[sources] + self._before[places]


def _parts(weights: Mapping[str, float]) -> dict[str, int]:
    """The weights as the smallest whole numbers of the same proportions, zeros left out."""
    exact = {name: Fraction(str(weight)) for name, weight in weights.items() if weight}
    if any(weight < 0 for weight in exact.values()):
        raise ValueError(f"{_listed(weights)}: a weight is a share or a number of parts, and not below 0")
    if not exact:
        raise ValueError("no source has a weight above 0; give one to each source that is to be trained on")
    total = sum(exact.values())
    if total != 1 and any(weight.denominator != 1 for weight in exact.values()):
        raise ValueError(
            f"{_listed(weights)} sum to {float(total):g}; write shares that sum to 1, or whole numbers as "
            "parts, such as 7 and 3"
        )
    places = math.lcm(*((weight / total).denominator for weight in exact.values()))
    if places > MOST_PLACES:
        raise ValueError(
            f"{_listed(weights)} are exact only every {places:,} rows; round them, so that {MOST_PLACES:,} "
            "rows suffice"
        )
    return {name: int(weight / total * places) for name, weight in exact.items()}


def _listed(weights: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {weight:g}" for name, weight in weights.items())


def _dealt(counts: list[int]) -> np.ndarray:
    """Which source gets each of sum(counts) places; int64.

    With k sources and c = 1 / (2k - 2), the j-th place of a source of weight w may be at place n, counted
    from 1, once w n - (j - 1) >= c; of those that may, the least (j - c) / w comes first."""
    total, slack = sum(counts), 2 * max(2, len(counts)) - 2
    pattern = np.empty(total, np.int64)
    coming = [(_release(1, count, total, slack), number) for number, count in enumerate(counts)]
    heapq.heapify(coming)
    ready: list[tuple[Fraction, int]] = []
    given = [0] * len(counts)
    for place in range(total):
        while coming and coming[0][0] <= place + 1:
            number = heapq.heappop(coming)[1]
            heapq.heappush(ready, (Fraction(slack * (given[number] + 1) - 1, counts[number]), number))
        number = heapq.heappop(ready)[1]
        pattern[place] = number
        given[number] += 1
        if given[number] < counts[number]:
            release = _release(given[number] + 1, counts[number], total, slack)
            heapq.heappush(coming, (release, number))
    return pattern


def _release(place: int, count: int, total: int, slack: int) -> int:
    """The first n, from 1, at which the source may have its `place`-th: ceil((place - 1 + c) / w)."""
    return -(-((place - 1) * slack + 1) * total // (slack * count))
