"""Shuffle lines that do not fit into memory: each gets a random number, and they are sorted by it on the disk."""

import itertools
import shutil
import struct
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

HEAD = struct.Struct("<QQI")
"""A line's random number, its place in the input and its length, in a file of the disk."""
OVERHEAD = 200
"""Bytes that a line takes in memory besides its text."""
DRAWN = 4096
"""Random numbers that are drawn together."""
BITS = 8
"""Bits of the random number that choose a file: 256 files at a time."""


class Line(NamedTuple):
    """A line, and what it is sorted by."""

    key: int
    number: int
    """Its place in the input: between equal keys it decides."""
    text: bytes


def shuffled(lines: Iterable[bytes], *, seed: int, buffer: int, scratch: Path) -> Iterator[bytes]:
    """Yield all lines in a random order that depends on `seed` and the input's order alone.

    Every permutation is equally likely. About `buffer` bytes are held in memory (or the longest line, if that is longer).
    What does not fit is in the folder `scratch` meanwhile, once the size of the input; the folder is removed at the end.
    """
    keyed = (Line(key, number, text) for number, (key, text) in enumerate(zip(_keys(seed), lines, strict=False)))
    shutil.rmtree(scratch, ignore_errors=True)  # of a run that was killed
    try:
        yield from _sorted(keyed, buffer, scratch, 64 - BITS)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _keys(seed: int) -> Iterator[int]:
    """Yield random numbers of 64 bits, without end."""
    generator = np.random.PCG64(seed)
    while True:
        yield from generator.random_raw(DRAWN).tolist()


def _sorted(lines: Iterator[Line], buffer: int, folder: Path, shift: int) -> Iterator[bytes]:
    """Yield the texts of lines in the order of their keys, which agree above `shift + BITS`."""
    held: list[Line] = []
    size = 0
    for line in lines:
        held.append(line)
        size += len(line.text) + OVERHEAD
        if size > buffer and len(held) > 1 and shift >= 0:
            break
    else:
        yield from (line.text for line in sorted(held))
        return
    files = _spilled(itertools.chain(held, lines), folder, shift)
    held.clear()
    for path in files:
        yield from _sorted(_read(path), buffer, folder / f"{path.name}-", shift - BITS)
        path.unlink()


def _spilled(lines: Iterable[Line], folder: Path, shift: int) -> list[Path]:
    """Return files in which lines are divided by the next bits of their keys, in the order of these."""
    folder.mkdir(parents=True)
    paths = [folder / f"{number:02x}" for number in range(1 << BITS)]
    files = [path.open("wb") for path in paths]
    try:
        for line in lines:
            file = files[line.key >> shift & (1 << BITS) - 1]
            file.write(HEAD.pack(line.key, line.number, len(line.text)))
            file.write(line.text)
    finally:
        for file in files:
            file.close()
    return paths


def _read(path: Path) -> Iterator[Line]:
    """Yield the lines of a file that `_spilled` wrote."""
    with path.open("rb") as file:
        while head := file.read(HEAD.size):
            key, number, length = HEAD.unpack(head)
            yield Line(key, number, file.read(length))
