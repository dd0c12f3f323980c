"""How many workers tokenize an input fastest on this machine: measured on its beginning."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from mconv.errors import FormatError
from mconv.train.data.encoded import Encoded
from mconv.train.data.pool import Work, in_order
from mconv.train.data.reading.batch import Batch
from mconv.train.data.reading.formats import batches

ROUNDS = 6
"""Batches for each worker. The first of each is not counted: processes start, and tokenizers are opened."""
ENOUGH = 0.95
"""Share of the best rate at which fewer workers are as good."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """How fast a number of workers is."""

    workers: int
    start: float
    """Seconds until each of them has tokenized a batch."""
    rate: float
    """Bytes of the input in a second after that."""
    tokens: float
    """Tokens in a second."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """The beginning of an input."""

    batches: list[Batch]
    rate: float
    """Bytes in a second at which one process reads and unpacks it: more than that, workers cannot be fed."""

    @property
    def size(self) -> int:
        """Bytes of the sample."""
        return sum(batch.size for batch in self.batches)


def sample(sources: Sequence[Path], keys: Sequence[str], *, workers: int, max_expand: float) -> Sample:
    """Read what this many workers need. Raises FormatError where the input is too short to measure anything."""
    found, wanted = [], workers * ROUNDS
    began = time.perf_counter()
    for path in sources:
        for batch in batches(path, keys, max_expand=max_expand):
            found.append(batch)
            if len(found) == wanted:
                break
        if len(found) == wanted:
            break
    seconds = time.perf_counter() - began
    if len(found) < 2:
        raise FormatError(f"the input is one block of {sum(batch.size for batch in found)} bytes; more text is needed")
    return Sample(batches=found, rate=sum(batch.size for batch in found) / seconds)


def counts(most: int) -> list[int]:
    """Return the numbers of workers to try: powers of two, and the most."""
    return sorted({*(1 << power for power in range(most.bit_length())), most})


def measure(found: Sample, job: Work[Batch, Encoded], workers: int) -> Measured:
    """Tokenize the sample, or as much of it as this many workers need, and return how fast that was."""
    taken = found.batches[: workers * ROUNDS]
    skipped = min(workers, len(taken) - 1)
    began = time.perf_counter()
    results = in_order(taken, job, workers=workers)
    for _ in range(skipped):
        next(results)
    started = time.perf_counter()
    counted = [(one.size, sum(len(pair.ids) for pair in one.pairs)) for one in results]
    seconds = time.perf_counter() - started
    size, tokens = (sum(column) / seconds for column in zip(*counted, strict=True))
    return Measured(workers=workers, start=started - began, rate=size, tokens=tokens)


def sweep(found: Sample, job: Work[Batch, Encoded], tried: Sequence[int]) -> Iterator[Measured]:
    """Yield how fast each number of workers is."""
    for workers in tried:
        yield measure(found, job, workers)


def best(rows: Sequence[Measured]) -> Measured:
    """Return the fewest workers that are about as fast as the fastest."""
    top = max(row.rate for row in rows)
    return min((row for row in rows if row.rate >= ENOUGH * top), key=lambda row: row.workers)
