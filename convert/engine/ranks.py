"""Several processes at one conversion: torchrun's ranks share out the work and stop together."""

import datetime
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, NoReturn, TypeVar

from mconv.errors import MconvError

T = TypeVar("T")
TIMEOUT = datetime.timedelta(days=7)
"""The time that a rank waits for the slowest one. One that dies is noticed at once: its connection is closed."""


class RankDied(MconvError):
    """Another rank is gone without a word, most likely killed."""


@dataclass(frozen=True, slots=True)
class Ranks:
    """This process among those that convert."""

    rank: int = 0
    world: int = 1

    def together(self, work: Callable[[], T]) -> list[T]:
        """Return what `work` returns on each rank. Where it fails on one, it fails on all, and each says which."""
        if self.world == 1:
            return [work()]
        failed: Exception | None = None
        try:
            mine: tuple[str | None, Any] = (None, work())
        except Exception as error:
            failed, mine = error, (str(error) or type(error).__name__, None)
        answers = self._gather(mine)
        wrong = [f"rank {rank}: {text}" for rank, (text, _) in enumerate(answers) if text is not None]
        if failed is None and wrong:
            failed = MconvError(wrong[0])
        if isinstance(failed, MconvError):
            failed.told = True
        if failed is not None:
            raise failed
        return [value for _, value in answers]

    def first(self, work: Callable[[], T]) -> T:
        """Return on every rank what `work` returns on rank 0, which alone does it."""
        return self.together(lambda: work() if self.rank == 0 else None)[0]  # type: ignore[return-value]  # is rank 0's

    def _gather(self, mine: object) -> list[Any]:
        from torch import distributed

        answers: list[Any] = [None] * self.world
        try:
            distributed.all_gather_object(answers, mine)
        except RuntimeError as error:
            raise RankDied(f"rank {self.rank}: another rank has died ({str(error).splitlines()[0]})") from error
        return answers


ALONE = Ranks()


def told() -> Ranks:
    """Return what torchrun says in the environment; nothing is joined yet."""
    return Ranks(int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1")))


def tell(error: MconvError) -> None:
    """Have the other ranks fail too, if this one has failed before it joined them."""
    if told().world > 1 and not error.told:
        from torch import distributed

        distributed.init_process_group("gloo", timeout=TIMEOUT)
        try:
            told().together(partial(_raise, error))
        finally:
            distributed.destroy_process_group()


def _raise(error: Exception) -> NoReturn:
    raise error


@contextmanager
def joined() -> Iterator[Ranks]:
    """Yield the ranks that torchrun has started, or this process alone. Raises MconvError if one cannot begin."""
    ranks = told()
    if ranks.world == 1:
        yield ALONE
        return
    from torch import distributed

    distributed.init_process_group("gloo", timeout=TIMEOUT)
    try:
        ranks.together(lambda: None)  # a rank that could not even begin says so here
        yield ranks
    finally:
        distributed.destroy_process_group()
