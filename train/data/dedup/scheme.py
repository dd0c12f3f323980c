"""Bands and rows of a MinHash signature, and how likely they are to find a pair."""

import math
from dataclasses import dataclass

import numpy as np

from mconv.errors import MconvError

PERMUTATIONS = 128
"""Largest number of permutations of a scheme that is chosen for its recall."""
RECALL = 0.99
"""Recall at the threshold if nothing else is asked for."""


@dataclass(frozen=True, slots=True)
class Scheme:
    """A signature of `bands` x `rows` minima. Two documents are candidates if all rows of one band are equal."""

    bands: int
    rows: int

    @property
    def permutations(self) -> int:
        """Number of minima in a signature."""
        return self.bands * self.rows

    def recall(self, similarity: float) -> float:
        """Return the share of pairs of this Jaccard similarity that become candidates."""
        return float(1 - (1 - similarity**self.rows) ** self.bands)


def choose(
    threshold: float,
    *,
    num_perm: int | None = None,
    recall: float | None = None,
    bands: int | None = None,
    rows: int | None = None,
) -> Scheme:
    """Return the scheme that the options ask for. Raises MconvError where they contradict each other.

    Bands and rows are taken as they are. `num_perm` alone is divided as datasketch and text-dedup do; otherwise the
    scheme reaches `recall` at the threshold.
    """
    _check(threshold, num_perm, recall)
    if bands is not None or rows is not None:
        return _given(bands, rows, alone=num_perm is None and recall is None)
    if num_perm is not None and recall is None:
        return balanced(threshold, num_perm)
    return for_recall(threshold, RECALL if recall is None else recall, num_perm or PERMUTATIONS)


def _check(threshold: float, num_perm: int | None, recall: float | None) -> None:
    if not 0 < threshold <= 1:
        raise MconvError(f"--threshold is {threshold}; a similarity is above 0 and at most 1")
    if recall is not None and not 0 < recall < 1:
        raise MconvError(f"--recall is {recall}; it must be between 0 and 1, such as 0.99")
    if num_perm is not None and num_perm < 1:
        raise MconvError(f"--num-perm is {num_perm}; at least 1 is needed")


def _given(bands: int | None, rows: int | None, *, alone: bool) -> Scheme:
    """Return the scheme of --bands and --rows."""
    if bands is None or rows is None or not alone:
        raise MconvError("--bands and --rows are given together, and without --num-perm and --recall")
    if bands < 1 or rows < 1:
        raise MconvError(f"--bands is {bands} and --rows is {rows}; at least 1 of each is needed")
    return Scheme(bands, rows)


def balanced(threshold: float, num_perm: int) -> Scheme:
    """Return the scheme of at most `num_perm` minima with the fewest errors of both kinds together.

    Errors are the area under `recall` below the threshold and the area above it beyond, each counted half, as in
    datasketch's MinHashLSH: 64 minima at 0.85 are 4 bands of 15 rows.
    """
    schemes = [Scheme(bands, rows) for bands in range(1, num_perm + 1) for rows in range(1, num_perm // bands + 1)]
    bands, rows = (np.array([getattr(one, name) for one in schemes])[:, None] for name in ("bands", "rows"))
    points, weights = np.polynomial.legendre.leggauss(48)
    below, above = threshold * (points + 1) / 2, threshold + (1 - threshold) * (points + 1) / 2
    false_positives = (1 - (1 - below**rows) ** bands) @ weights * threshold
    false_negatives = (1 - above**rows) ** bands @ weights * (1 - threshold)
    return schemes[int(np.argmin(false_positives + false_negatives))]


def for_recall(threshold: float, recall: float, most: int) -> Scheme:
    """Return the scheme that finds this share of the pairs at the threshold, with the fewest other candidates.

    More rows mean fewer candidates below the threshold, and more bands for the same recall: as many rows are taken as
    fit into `most` minima.
    """
    for rows in range(most, 0, -1):
        bands = _bands(threshold**rows, recall)
        if bands * rows <= most:
            return Scheme(bands, rows)
    needed = _bands(threshold, recall)
    raise MconvError(
        f"--recall {recall} at --threshold {threshold} needs at least {needed} permutations; give --num-perm {needed} or "
        "more, or a lower recall"
    )


def _bands(equal: float, recall: float) -> int:
    """Return how many bands find a pair in this share of the cases, if one band does with probability `equal`."""
    if equal >= 1:
        return 1
    # A probability too small for a float asks for more bands than there can be.
    return math.ceil(math.log1p(-recall) / math.log1p(-equal) - 1e-9) if equal > 1e-12 else 1 << 40
