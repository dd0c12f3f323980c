"""Progress of tokenizing: a bar on a terminal, Megatron's lines where they are asked for, nothing in a pipe."""

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from mconv.cli.terminal import progress

MIB = 1 << 20


@contextmanager
def shown(sources: Sequence[Path], what: str, *, every: int | None) -> Iterator[Callable[[int, int], None]]:
    """Yield a function that is told of records and bytes that were tokenized, and shows them.

    `every`: print a line after so many records, as Megatron's tools do.
    """
    if every:
        yield megatron_lines(what, every)
        return
    with progress(size(sources), f"tokenizing {what}") as advance:
        yield lambda records, done: advance(done)


def size(sources: Sequence[Path]) -> int | None:
    """Return the bytes that will be read, None where packed files and datasets that are fetched do not tell."""
    from mconv.train.data.reading.packed import PACKED

    told = all(path.is_file() and path.suffix not in PACKED for path in sources)
    return sum(path.stat().st_size for path in sources) if told else None


def megatron_lines(what: str, every: int) -> Callable[[int, int], None]:
    """Return a function that prints Megatron's progress lines; MB are of bytes, which Megatron takes letters for."""
    began = time.monotonic()
    done = {"records": 0, "bytes": 0}

    def tell(records: int, size: int) -> None:
        before, done["records"] = done["records"], done["records"] + records
        done["bytes"] += size
        if done["records"] // every > before // every:
            seconds = time.monotonic() - began
            rates = f"({done['records'] / seconds:.2f} docs/s, {done['bytes'] / MIB / seconds:.2f} MB/s)"
            print(f"Processed {done['records']} {what} {rates}.", file=sys.stderr, flush=True)

    return tell
