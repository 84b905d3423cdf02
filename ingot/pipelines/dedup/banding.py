"""How a signature is cut into bands."""

from __future__ import annotations

from dataclasses import dataclass

# A candidate that proves to be none costs a comparison of two sets; a pair that is no candidate is lost. With
# 128 permutations and threshold 0.8 these weights give 17 bands of 7 rows: a pair at 0.85 becomes a candidate
# with probability 0.999, one at 0.8 with 0.982.
FALSE_POSITIVE_WEIGHT, FALSE_NEGATIVE_WEIGHT = 0.02, 0.98


@dataclass(frozen=True)
class Banding:
    """Documents whose signatures agree in all rows of at least one band are candidates."""

    bands: int
    rows: int

    def candidate_probability(self, similarity: float) -> float:
        """1 − (1 − s^r)^b (Leskovec, Rajaraman, Ullman, Mining of Massive Datasets, 3.4.2)."""
        return float(1 - (1 - similarity**self.rows) ** self.bands)


def choose_banding(threshold: float, permutations: int) -> Banding:
    """The bands and rows, of at most `permutations`, that miss least near the threshold."""
    from datasketch import MinHashLSH

    lsh = MinHashLSH(
        threshold=threshold, num_perm=permutations, weights=(FALSE_POSITIVE_WEIGHT, FALSE_NEGATIVE_WEIGHT)
    )
    return Banding(lsh.b, lsh.r)
