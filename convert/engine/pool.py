"""Worker threads: tasks are done in any order, and what is done is settled in batches on the side."""

import queue
import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from typing import Generic, TypeVar

import torch

Task = TypeVar("Task")
Result = TypeVar("Result")


class Stopped(Exception):
    """Another worker has failed: its error is the one to tell."""


@dataclass(slots=True)
class Lanes(Generic[Task]):
    """Tasks in one lane a worker, so that workers write to different files; who is done helps the longest lane."""

    lanes: list[deque[Task]]
    lock: threading.Lock = field(default_factory=threading.Lock)

    @classmethod
    def of(cls, tasks: Sequence[Task], sizes: Sequence[int], count: int) -> "Lanes[Task]":
        """Return lanes of about as many bytes each, every one a run of neighbours."""
        lanes: list[deque[Task]] = [deque() for _ in range(count)]
        total, at = max(1, sum(sizes)), 0
        for task, size in zip(tasks, sizes, strict=True):
            lanes[min(count - 1, (at + size // 2) * count // total)].append(task)
            at += size
        return cls(lanes)

    def take(self, lane: int) -> Task | None:
        """Return the next task of a lane, the last of the longest one if it is empty, None if all are."""
        with self.lock:
            if self.lanes[lane]:
                return self.lanes[lane].popleft()
            longest = max(self.lanes, key=len)
            return longest.pop() if longest else None


def run(
    lanes: Lanes[Task],
    work: Callable[[Task], Result],
    settle: Callable[[list[Result]], None],
    stop: threading.Event,
) -> None:
    """Do all tasks; `settle` gets what was done, in one thread. The first error stops all and is raised."""
    done: queue.SimpleQueue[Result | None] = queue.SimpleQueue()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the workers are the threads: within an operation there are none

    def worker(lane: int) -> None:
        torch.set_num_threads(1)
        while not stop.is_set() and (task := lanes.take(lane)) is not None:
            done.put(work(task))

    def settler() -> None:
        while (first := done.get()) is not None:
            batch, more = [first], True
            while more and not done.empty():
                following = done.get()
                more = following is not None
                batch += [following] if following is not None else []
            settle(batch)
            if not more:
                return

    with ThreadPoolExecutor(len(lanes.lanes) + 1, "mconv") as pool:
        settling = pool.submit(settler)
        working = [pool.submit(worker, lane) for lane in range(len(lanes.lanes))]
        try:
            for count, future in enumerate(as_completed([*working, settling]), 1):
                future.result()
                if count == len(working):
                    break
        except BaseException:
            stop.set()
            raise
        finally:
            done.put(None)
            torch.set_num_threads(threads)
        settling.result()
