"""The n-grams of a text, hashed, and their Jaccard similarity."""

import re
from collections.abc import Iterable

import numpy as np
import numpy.typing as npt
import xxhash

WORD = re.compile(r"\w+")
"""A word: what lies between spaces, punctuation and other marks. The underscore belongs to words."""


def ngrams(text: str, size: int, unit: str) -> list[str]:
    """Return the n-grams of a text in lower case, without punctuation: of its words, or of its characters.

    A text with fewer than `size` words is one n-gram; one without any word has none.
    """
    words = WORD.findall(text.lower())
    parts, between = (words, " ") if unit == "word" else ("".join(words), "")
    if len(parts) < size:
        return [between.join(parts)] if parts else []
    return list(map(between.join, zip(*(parts[start:] for start in range(size)), strict=False)))


def hashed(grams: Iterable[str]) -> npt.NDArray[np.uint64]:
    """Return the 64-bit hashes of the n-grams, sorted, each once."""
    return np.unique(np.fromiter(map(xxhash.xxh3_64_intdigest, map(str.encode, set(grams))), np.uint64))


def jaccard(one: npt.NDArray[np.uint64], other: npt.NDArray[np.uint64]) -> float:
    """Return the share of the n-grams of either text that both have."""
    common = len(np.intersect1d(one, other, assume_unique=True))
    return common / (len(one) + len(other) - common)
