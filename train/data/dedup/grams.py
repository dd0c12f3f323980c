"""The n-grams of a text, hashed, and their Jaccard similarity."""

import re
from collections.abc import Callable, Sequence
from itertools import chain

import numpy as np
import numpy.typing as npt
import xxhash

WORD = re.compile(r"\w+")
"""A word: what lies between spaces, punctuation and other marks. The underscore belongs to words."""
FACTOR, MIX = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xBF58476D1CE4E5B9)
"""Odd numbers without a pattern: the golden ratio's, as a factor, and splitmix64's."""
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


def parts(text: str, unit: str) -> list[bytes]:
    """Return the words or the characters of a text."""
    return UNITS[unit][0](text)


def ngrams(text: str, size: int, unit: str) -> list[bytes]:
    """Return the n-grams of a text in lower case, without punctuation: of its words, or of its characters.

    A text with fewer than `size` words is one n-gram; one without any word has none.
    """
    found, between = parts(text, unit), UNITS[unit][1]
    if len(found) < size:
        return [between.join(found)] if found else []
    return list(map(between.join, zip(*(found[start:] for start in range(size)), strict=False)))


def rolled(hashes: Sequence[list[int]], size: int) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.uint64]]:
    """Return the hashes of the n-grams of texts whose words have these hashes, and where those of each text begin.

    The hash of an n-gram is a polynomial of its words' hashes modulo 2^64, mixed as splitmix64 does: much cheaper than
    to write the n-gram down. A text shorter than an n-gram is filled up, as its only one.
    """
    rows = [row + [0] * (size - len(row)) if row else row for row in hashes]
    ends = np.cumsum([len(row) for row in rows], dtype=np.int64)
    words = np.fromiter(chain.from_iterable(rows), np.uint64, int(ends[-1]) if rows else 0)
    count = max(0, len(words) - size + 1)
    found = np.zeros(count, np.uint64)
    for place in range(size):
        found = found * FACTOR + words[place : place + count]
    found = (found ^ found >> np.uint64(30)) * MIX
    found ^= found >> np.uint64(27)
    inside = np.ones(count, bool)
    seams = np.unique(ends[(ends > 0) & (ends < len(words))])
    for back in range(1, size):  # windows that reach over the end of a text
        inside[seams - back] = False
    lengths = [max(0, len(row) - size + 1) for row in rows]
    return found[inside], np.cumsum([0, *lengths], dtype=np.uint64)


def hashed(grams: Sequence[bytes]) -> npt.NDArray[np.uint64]:
    """Return the 64-bit hashes of the n-grams, sorted, each once."""
    found = np.fromiter(map(xxhash.xxh3_64_intdigest, grams), np.uint64, len(grams))
    found.sort()
    return found[np.diff(found, prepend=~found[:1]) != 0]  # np.unique takes six times as long


def jaccard(one: npt.NDArray[np.uint64], other: npt.NDArray[np.uint64]) -> float:
    """Return the share of the n-grams of either text that both have."""
    common = len(np.intersect1d(one, other, assume_unique=True))
    return common / (len(one) + len(other) - common)
