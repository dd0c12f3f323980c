"""Work on many items in their order, by one process or several."""

import itertools
import multiprocessing
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack
from typing import Any

from mconv.errors import MconvError

BATCH = 512
"""Items that are worked on together."""
FULL = 1 << 22
"""Letters of them, at which a batch is full before."""


def in_batches(
    items: Iterable[Any], work: Callable[[list[Any]], list[Any]], *, workers: int, letters: Callable[[Any], int]
) -> Iterator[Any]:
    """Yield the results of `work` over batches of `items`, in the order of the items whatever `workers` is.

    `letters` tells how long an item is: long ones share a batch with fewer others, so that memory is bounded.
    """
    batches = _batches(items, letters)
    with ExitStack() as stack:
        results: Iterable[list[Any]] = map(work, batches)
        if workers > 1:
            # Spawned: the tokenizers library warns, and may lock up, in a forked child.
            context = multiprocessing.get_context("spawn")
            pool = stack.enter_context(ProcessPoolExecutor(workers, context))
            results = _in_order(pool, work, batches, 2 * workers)
        yield from itertools.chain.from_iterable(results)


def _batches(items: Iterable[Any], letters: Callable[[Any], int]) -> Iterator[list[Any]]:
    batch: list[Any] = []
    held = 0
    for item in items:
        batch.append(item)
        held += letters(item)
        if len(batch) == BATCH or held >= FULL:
            yield batch
            batch, held = [], 0
    if batch:
        yield batch


def _in_order(
    pool: ProcessPoolExecutor, work: Callable[[list[Any]], list[Any]], batches: Iterator[list[Any]], ahead: int
) -> Iterator[list[Any]]:
    """Yield results in the order of `batches`, at most `ahead` of them in progress. A killed worker is an error."""
    waiting = deque(pool.submit(work, batch) for batch in itertools.islice(batches, ahead))
    try:
        while waiting:
            yield waiting.popleft().result()
            waiting.extend(pool.submit(work, batch) for batch in itertools.islice(batches, 1))
    except BrokenProcessPool as error:
        raise MconvError("a tokenizing process was killed (out of memory?); try fewer --workers") from error
