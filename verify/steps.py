"""How far a comparison has come: bytes of weights that have been used, told to whoever shows it."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

from mconv.convert.sources.read import Progress, quiet

Show = Callable[[int, str], AbstractContextManager[Progress]]
"""(bytes in all, what is being done) -> what is told of each share of them."""
_told: list[Progress] = [quiet]


def silent(_: int, __: str) -> AbstractContextManager[Progress]:
    """Show nothing."""
    return nullcontext(quiet)


@contextmanager
def told(progress: Progress) -> Iterator[None]:
    """For a while, `advance` tells `progress`."""
    _told.append(progress)
    try:
        yield
    finally:
        _told.pop()


def advance(nbytes: int) -> None:
    """Weights of so many bytes have been used."""
    _told[-1](nbytes)
