"""Progress of a comparison: counts the bytes of weights that were used, and reports them to whoever shows it."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

from mconv.convert.sources.read import Progress, quiet

ShowProgress = Callable[[int, str], AbstractContextManager[Progress]]
"""A callback (total bytes, description of the work) -> context whose value is called with each number of bytes."""
_listeners: list[Progress] = [quiet]


def silent(_: int, __: str) -> AbstractContextManager[Progress]:
    """Show nothing."""
    return nullcontext(quiet)


@contextmanager
def report_to(listener: Progress) -> Iterator[None]:
    """Make `advance` call `listener` within the context."""
    _listeners.append(listener)
    try:
        yield
    finally:
        _listeners.pop()


def advance(nbytes: int) -> None:
    """Report that weights of so many bytes were used."""
    _listeners[-1](nbytes)
