"""How a signature is cut into bands."""

from __future__ import annotations

from dataclasses import dataclass

from ingot.pipelines.sections import MOST_BANDS, Dedup

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


def banding_of(section: Dedup) -> Banding:
    """The bands and rows that are given, or those that suit the threshold."""
    if section.bands and section.rows:
        return Banding(section.bands, section.rows)
    return choose_banding(section.threshold, section.permutations)


def choose_banding(threshold: float, permutations: int) -> Banding:
    """The bands and rows, of at most `permutations`, that miss least near the threshold; where those are more
    bands than there may be, MOST_BANDS of as many rows as miss no more at the threshold."""
    from datasketch import MinHashLSH

    weights = (FALSE_POSITIVE_WEIGHT, FALSE_NEGATIVE_WEIGHT)
    try:
        lsh = MinHashLSH(threshold=threshold, num_perm=permutations, weights=weights)
    except ValueError:  # so near to 1 that a single band would be best, which it does not know
        return Banding(2, permutations // 2)
    best = Banding(lsh.b, lsh.r)
    if best.bands <= MOST_BANDS:
        return best
    wanted = best.candidate_probability(threshold)
    fewer = (Banding(MOST_BANDS, rows) for rows in range(lsh.r, 0, -1))
    return next(
        (each for each in fewer if each.candidate_probability(threshold) >= wanted), Banding(MOST_BANDS, 1)
    )
