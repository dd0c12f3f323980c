"""Collect Python's garbage on all ranks at the same steps: where each rank chooses its own, all wait for every pause."""

import contextlib
import gc
from collections.abc import Iterator


@contextlib.contextmanager
def by_hand(every: int) -> Iterator[None]:
    """Keep Python from collecting garbage by itself within this context; with `every` 0 it does as ever."""
    if not every:
        yield
        return
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def collect(iteration: int, *, every: int) -> None:
    """Collect garbage after a step whose number is a multiple of `every`."""
    if every and iteration % every == 0:
        gc.collect()
