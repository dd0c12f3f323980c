"""The n-grams of a text, hashed, and their Jaccard similarity."""

import re
from collections.abc import Callable, Iterable

import numpy as np
import numpy.typing as npt
import xxhash

WORD = re.compile(r"\w+")
"""A word: what lies between spaces, punctuation and other marks. The underscore belongs to words."""
APART = bytes(code if re.match(r"\w", chr(code)) else ord(" ") for code in range(128)) + bytes(128)
"""For each byte of ASCII itself if it belongs to a word, else a space."""


def words(text: str) -> list[bytes]:
    """Return the words of a text in lower case."""
    lower = text.lower()
    if lower.isascii():  # several times as fast as the expression
        return lower.encode().translate(APART).split()
    return " ".join(WORD.findall(lower)).encode().split()


def characters(text: str) -> list[bytes]:
    """Return the characters of the words of a text in lower case."""
    return [character.encode() for character in "".join(WORD.findall(text.lower()))]


UNITS: dict[str, tuple[Callable[[str], list[bytes]], bytes]] = {"word": (words, b" "), "character": (characters, b"")}
"""What n-grams can be made of, and what stands between two of them."""


def ngrams(text: str, size: int, unit: str) -> list[bytes]:
    """Return the n-grams of a text in lower case, without punctuation: of its words, or of its characters.

    A text with fewer than `size` words is one n-gram; one without any word has none.
    """
    divided, between = UNITS[unit]
    parts = divided(text)
    if len(parts) < size:
        return [between.join(parts)] if parts else []
    return list(map(between.join, zip(*(parts[start:] for start in range(size)), strict=False)))


def hashed(grams: Iterable[bytes]) -> npt.NDArray[np.uint64]:
    """Return the 64-bit hashes of the n-grams, sorted, each once."""
    return np.unique(np.fromiter(map(xxhash.xxh3_64_intdigest, set(grams)), np.uint64))


def jaccard(one: npt.NDArray[np.uint64], other: npt.NDArray[np.uint64]) -> float:
    """Return the share of the n-grams of either text that both have."""
    common = len(np.intersect1d(one, other, assume_unique=True))
    return common / (len(one) + len(other) - common)
