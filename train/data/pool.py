"""Work on batches in their order, by one process or several."""

import itertools
import multiprocessing
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

from mconv.errors import MconvError

B = TypeVar("B")
R = TypeVar("R")


def in_order(batches: Iterable[B], work: Callable[[B], R], *, workers: int) -> Iterator[R]:
    """Yield what `work` makes of each batch, in the order of the batches whatever `workers` is."""
    if workers == 1:
        yield from map(work, batches)
        return
    # Spawned: the tokenizers library warns, and may lock up, in a forked child.
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
        yield from _in_order(pool, work, iter(batches), 2 * workers)


def _in_order(pool: ProcessPoolExecutor, work: Callable[[B], R], batches: Iterator[B], ahead: int) -> Iterator[R]:
    """Yield results in the order of `batches`, at most `ahead` of them in progress. A killed worker is an error."""
    waiting = deque(pool.submit(work, batch) for batch in itertools.islice(batches, ahead))
    try:
        while waiting:
            yield waiting.popleft().result()
            waiting.extend(pool.submit(work, batch) for batch in itertools.islice(batches, 1))
    except BrokenProcessPool as error:
        raise MconvError("a tokenizing process was killed (out of memory?); try fewer --workers") from error
