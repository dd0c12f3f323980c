"""Collectives: values from other ranks, and work that succeeds or fails on all of them, however long it takes.

A rank that fails alone leaves the others in a collective, and a collective gives up after some minutes. So a rank waits
by itself, a moment at a time, and between two moments all ranks exchange whether they are done.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import wait as ended
from typing import Any, TypeVar

import torch

from mconv.errors import MconvError

T = TypeVar("T")
MOMENT = 1.0
"""Seconds that a rank waits by itself: far less than any collective does."""


def from_rank_0(value: Any) -> Any:
    """Return rank 0's value, on every rank of the world that was joined; the value itself outside of one."""
    if not torch.distributed.is_initialized() or torch.distributed.get_world_size() == 1:
        return value
    said = [value]
    torch.distributed.broadcast_object_list(said, src=0)
    return said[0]


def from_all_ranks(value: Any) -> list[Any]:
    """Return every rank's value, in order, on every rank of the world that was joined."""
    found: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(found, value)
    return found


def largest(number: int) -> int:
    """Return the largest of all ranks' numbers: one small all-reduce."""
    told = torch.tensor([number], device=torch.cuda.current_device())
    torch.distributed.all_reduce(told, op=torch.distributed.ReduceOp.MAX)
    return int(told.item())


def everywhere(fine: bool) -> bool:
    """Return whether it is true on every rank."""
    return not largest(int(not fine))


def wait(here: Callable[[float], bool]) -> None:
    """Wait until it is so on every rank; `here` waits so many seconds at most for its own."""
    while not everywhere(here(MOMENT)):
        pass


def on_rank_0(work: Callable[[], T]) -> T:
    """Return on every rank what `work` returns on rank 0, or raise there what it raises.

    It may take as long as it likes, in a thread of its own, but may not itself speak to other ranks. Raises MconvError
    for an OSError.
    """
    if not torch.distributed.is_initialized() or torch.distributed.get_world_size() == 1:
        value, error = _tried(work)
    else:
        value, error = _together(work)
    if isinstance(error, OSError):
        raise MconvError(str(error)) from error
    if error is not None:
        raise error
    answer: T = value
    return answer


def _tried(work: Callable[[], T]) -> tuple[Any, Exception | None]:
    try:
        return work(), None
    except Exception as error:
        return None, error


def _together(work: Callable[[], T]) -> tuple[Any, Exception | None]:
    """Return rank 0's answer; an error that cannot be sent reaches the other ranks by its name."""
    if torch.distributed.get_rank():
        wait(lambda _: True)
        answer: tuple[Any, Exception | None] = from_rank_0(None)
        return answer
    with ThreadPoolExecutor(1) as thread:
        task = thread.submit(_tried, work)
        wait(lambda seconds: bool(ended([task], seconds).done))
    value, error = task.result()
    known = error is None or isinstance(error, MconvError | OSError)
    from_rank_0((value, error if known else MconvError(f"rank 0 failed: {type(error).__name__}: {error}")))
    return value, error
