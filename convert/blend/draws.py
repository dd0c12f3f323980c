"""Random masks by index: what an element draws follows from the seed, its model, its tensor and where it is in it."""

import hashlib

import numpy as np

WORDS = 8
"""32-bit numbers that the generator makes at each count."""


def key_of(seed: int, model: int, tensor: str) -> int:
    """Return the generator's key for one tensor of one model: 128 bits."""
    return int.from_bytes(hashlib.sha256(f"{seed}\0{model}\0{tensor}".encode()).digest()[:16], "little")


def draws(key: int, start: int, count: int) -> np.ndarray:
    """Return what the elements from `start` on draw, each one uniform 32-bit number."""
    first = start // WORDS
    generator = np.random.Philox(key=key)
    generator.advance(first)
    skipped = start - first * WORDS
    words = generator.random_raw((skipped + count + 1) // 2).astype("<u8").view("<u4")
    return words[skipped : skipped + count]


def below(key: int, start: int, count: int, chance: float | np.ndarray) -> np.ndarray:
    """Return which of the elements from `start` on draw one that comes with this chance, or each with its own."""
    return draws(key, start, count) < np.rint(np.asarray(chance) * 2.0**32)
