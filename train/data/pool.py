"""Work on batches in their order, by one process or several."""

import itertools
import multiprocessing
import os
import pickle
import signal
import tempfile
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar, runtime_checkable

from mconv.errors import MconvError
from mconv.train.launch.parent_death import end_with_parent

AHEAD = 3
"""Batches for each process that are read before they are needed."""

B = TypeVar("B", contravariant=True)
R = TypeVar("R", covariant=True)


@runtime_checkable
class Work(Protocol[B, R]):
    """Work on batches, as it is sent to the processes that do it."""

    def open(self) -> Callable[[B], R]:
        """Return the function that works on a batch, with all that it needs opened."""


@dataclass(frozen=True, slots=True)
class Ready(Generic[B, R]):
    """Work that needs nothing opened."""

    function: Callable[[B], R]

    def open(self) -> Callable[[B], R]:
        """Return the function."""
        return self.function


def in_order(batches: Iterable[B], job: Work[B, R], *, workers: int) -> Iterator[R]:
    """Yield what `job` makes of each batch, in the order of the batches whatever `workers` is.

    Each worker takes one core. A single batch is done in this process.
    """
    rest = iter(batches)
    first = [*itertools.islice(rest, 2)]
    rest = itertools.chain(first, rest)
    if workers == 1 or len(first) < 2:
        with _one_thread():
            yield from map(job.open(), rest)
        return
    # Spawned: the tokenizers library warns, and may lock up, in a forked child.
    context = multiprocessing.get_context("spawn")
    with (
        _one_thread(),
        _in_file(job) as path,
        ProcessPoolExecutor(workers, context, initializer=_Worker.begin, initargs=(path,)) as pool,
    ):
        yield from _in_order(pool, rest, AHEAD * workers)


class _Worker:
    """What a process keeps from batch to batch."""

    job: Path
    work: Callable[[Any], Any] | None = None

    @classmethod
    def begin(cls, job: Path) -> None:
        """Take the job. Ctrl-C is the parent's to answer; its death ends the worker."""
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        end_with_parent(signal.SIGKILL)
        cls.job = job

    @classmethod
    def do(cls, batch: Any) -> Any:
        """Return what the job makes of a batch. The first one opens it, so that an error there comes back as one."""
        cls.work = cls.work or pickle.loads(cls.job.read_bytes()).open()
        return cls.work(batch)


@contextmanager
def _in_file(job: Work[Any, Any]) -> Iterator[Path]:
    """Yield a file that holds the job. Among the arguments of a process, what is larger than a pipe would block its
    parent for ever if the process died on its first line.
    """
    with tempfile.NamedTemporaryFile(prefix="mconv-") as file:
        file.write(pickle.dumps(job))
        file.flush()
        yield Path(file.name)


@contextmanager
def _one_thread() -> Iterator[None]:
    """Keep the tokenizers library, here and in processes that are started, from threads of its own."""
    before = os.environ.get("TOKENIZERS_PARALLELISM")
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    try:
        yield
    finally:
        if before is None:
            del os.environ["TOKENIZERS_PARALLELISM"]
        else:
            os.environ["TOKENIZERS_PARALLELISM"] = before


def _in_order(pool: ProcessPoolExecutor, batches: Iterator[Any], ahead: int) -> Iterator[Any]:
    """Yield results in the order of `batches`, at most `ahead` of them in progress. A killed worker is an error."""
    waiting: deque[Future[Any]] = deque()
    try:
        waiting.extend(pool.submit(_Worker.do, batch) for batch in itertools.islice(batches, ahead))
        while waiting:
            yield waiting.popleft().result()
            waiting.extend(pool.submit(_Worker.do, batch) for batch in itertools.islice(batches, 1))
    except BrokenProcessPool as error:
        raise MconvError("a worker process was killed (out of memory?); try fewer --workers") from error
    finally:
        for future in waiting:
            future.cancel()
