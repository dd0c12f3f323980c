"""Join documents to clusters, of which the first document is kept."""

from array import array
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mconv.train.data.dedup.buckets import Buckets
from mconv.train.data.dedup.grams import jaccard
from mconv.train.data.dedup.work import Ids

NEAREST = 64
"""Documents of a bucket that one is compared with: those whose number of n-grams is nearest below its own."""


class Clusters:
    """Sets of documents that are joined step by step (union-find); each is known by its first document."""

    def __init__(self, ids: Ids) -> None:
        self._ids = ids
        self._parents = array("q", range(len(ids)))

    def find(self, one: int) -> int:
        """Return the first member of the set of a document; both are counted within `ids`."""
        parents = self._parents
        while parents[one] != one:
            parents[one] = one = parents[parents[one]]
        return one

    def join(self, one: int, other: int) -> None:
        """Make one set of two."""
        low, high = sorted((self.find(one), self.find(other)))
        self._parents[high] = low

    def firsts(self) -> Ids:
        """Return for each document the first one of its cluster."""
        return self._ids[np.fromiter(map(self.find, range(len(self._ids))), np.int64, len(self._ids))]


@dataclass(frozen=True, slots=True)
class Grams:
    """The hashed n-grams of the candidates."""

    ids: Ids
    """The candidates, sorted."""
    ends: Ids
    """Where the n-grams of each end."""
    data: npt.NDArray[np.uint64]

    def __getitem__(self, number: int) -> npt.NDArray[np.uint64]:
        return self.data[self.ends[number - 1] if number else 0 : self.ends[number]]

    def sizes(self) -> Ids:
        """Return the number of n-grams of each candidate."""
        return np.diff(self.ends, prepend=0)

    def jaccard(self, ones: Ids, others: Ids) -> npt.NDArray[np.float64]:
        """Return the similarity of each pair of documents."""
        pairs = zip(*(np.searchsorted(self.ids, side).tolist() for side in (ones, others)), strict=True)
        return np.fromiter((jaccard(self[one], self[other]) for one, other in pairs), np.float64, len(ones))


def join_all(clusters: Clusters, ids: Ids, bands: Iterable[Buckets]) -> None:
    """Join all documents of each bucket: the signatures alone decide."""
    for buckets in (part for band in bands for part in band.parts()):
        numbers = np.searchsorted(ids, buckets.members).tolist()
        for start, end in buckets.spans():
            for other in numbers[start + 1 : end]:
                clusters.join(numbers[start], other)


def join_similar(clusters: Clusters, grams: Grams, bands: Iterable[Buckets], threshold: float) -> None:
    """Join the documents of each bucket that are similar by their n-grams."""
    sizes = grams.sizes()
    for buckets in (part for band in bands for part in band.parts()):
        found = np.searchsorted(grams.ids, buckets.members)
        numbers, lengths = found.tolist(), sizes[found].tolist()
        for start, end in buckets.spans():
            by_size = [numbers[at] for at in sorted(range(start, end), key=lengths.__getitem__)]
            for place, one in enumerate(by_size):
                _join_one(clusters, grams, one, by_size[max(0, place - NEAREST) : place], threshold)


def _join_one(clusters: Clusters, grams: Grams, one: int, smaller: list[int], threshold: float) -> None:
    """Join a document with those of its bucket that have at most as many n-grams, the nearest first."""
    own = grams[one]
    for other in reversed(smaller):
        theirs = grams[other]
        if len(theirs) / len(own) < threshold:
            return  # the similarity of two sets is at most the ratio of their sizes
        if clusters.find(one) != clusters.find(other) and jaccard(own, theirs) >= threshold:
            clusters.join(one, other)
