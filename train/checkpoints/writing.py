"""A checkpoint's files: planned by megatron-core on all ranks, one written by each, whole on all of them or on none.

A rank's file is written by a forked process, whose memory is a picture of the moment, and which starts no others. Its
rank holds one end of a pipe to it, so that whatever ends the process is noticed; megatron-core's own queue, its writers
and their helpers wait for one another without looking who is still alive.
"""

import contextlib
import gc
import multiprocessing
import queue
import signal
import socket
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

from mconv.errors import DiskFull, MconvError
from mconv.train import agree
from mconv.train.checkpoints import room
from mconv.train.megatron.imports import (
    CheckpointingConfig,
    TorchCommonSaveStrategy,
    TorchDistSaveShardedStrategy,
    save_config,
    save_preprocess,
)
from mconv.train.orphan import end_with_parent
from mconv.train.parallel import from_all_ranks, timeout_minutes

FORMAT = ("torch_dist", 1)


class _Plan(TorchDistSaveShardedStrategy):
    """megatron-core's save strategy, stopped after planning."""

    def _get_save_and_finalize_callbacks(self, writer: Any, planned: Any) -> tuple[Any, Any]:
        return writer, planned[1]


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a rank's file is not whole."""

    text: str
    full: bool = False
    """Whether its disk has no room."""


@dataclass(slots=True, kw_only=True)
class Writing:
    """A checkpoint that is being written, as one rank sees it. All ranks call `close` at the same time, once."""

    folder: Path
    writer: Any
    """megatron-core's writer, which knows what this rank writes, and where."""
    index: Any
    """Index of all files, to be completed by rank 0."""
    file: Path | None = None
    process: Any = None
    pipe: Connection | None = None
    """Receives the process's report; None once it is here, or if this rank has nothing to write."""
    results: list[Any] = field(default_factory=list)
    failure: Failure | None = None
    """Why this rank's file will not be whole."""
    size: int = -1
    heard: float = field(default_factory=time.monotonic)
    """When the file last grew."""

    def start(self) -> None:
        """Start to write this rank's file; an error becomes a `failure`, which `close` shares with all ranks."""
        try:
            for bucket in self.writer.preload_tensors(self.writer.write_buckets or [], True):  # one, for one thread
                self._fork(bucket)
        except (OSError, RuntimeError, MemoryError) as error:  # no memory for the copies, or for a process
            self.give_up()
            self.failure = Failure(f"no writer could be started: {error}")
        self.writer.write_buckets = None  # the process has them

    def _fork(self, bucket: Any) -> None:
        context = multiprocessing.get_context("fork")
        self.file, (self.pipe, there) = Path(bucket[0]), context.Pipe(duplex=False)
        self.process = context.Process(target=_write, args=(self.writer, bucket, there), daemon=True)
        with _forking(), there:  # after that the process alone holds it: when that is gone, the pipe is at its end
            self.process.start()

    def done(self, seconds: float = 0.0) -> bool:
        """Return whether this rank's part has ended, successfully or not; waits at most `seconds`."""
        if self.pipe is None:
            return True
        if self.pipe.poll(seconds):
            self._hear(self.pipe)
        elif self._stuck():
            self.give_up()
            self.failure = Failure(f"its writer has written nothing for {timeout_minutes()} minutes")
        return self.pipe is None

    def _hear(self, pipe: Connection) -> None:
        """Read the process's report, or note that it died."""
        try:
            said = pipe.recv()
        except (EOFError, OSError):
            self.process.join()
            said = Failure(f"its writer {_how(self.process.exitcode)}")
        self.give_up()
        if isinstance(said, Failure):
            self.failure = said
        else:
            self.results = said

    def _stuck(self) -> bool:
        """Return whether the file has not grown for as long as a collective would wait: a slow disk is not a dead one."""
        with contextlib.suppress(OSError):
            if self.file and (size := self.file.stat().st_size) != self.size:
                self.size, self.heard = size, time.monotonic()
        return time.monotonic() - self.heard > 60 * timeout_minutes()

    def give_up(self) -> None:
        """Stop this rank's writer."""
        if self.pipe is not None:
            if self.process.pid:
                self.process.kill()
                self.process.join()
            self.pipe.close()
            self.pipe = None

    def close(self) -> None:
        """Let rank 0 write the index when all are `done`.

        Raises on all ranks if one of them could not write: DiskFull where one had no room, else MconvError.
        """
        failures = [(rank, why) for rank, why in enumerate(from_all_ranks(self._located(self.failure))) if why]
        if failures:
            more = f"; and {len(failures) - 3} ranks more" if len(failures) > 3 else ""
            kind = DiskFull if any(why.full for _, why in failures) else MconvError
            raise kind("; ".join(f"rank {rank} {why.text}" for rank, why in failures[:3]) + more)
        gathered: list[Any] = [None] * torch.distributed.get_world_size()
        torch.distributed.gather_object(self.results, None if torch.distributed.get_rank() else gathered)
        agree.on_rank_0(lambda: self._finish(gathered))

    def _finish(self, results: list[Any]) -> None:
        with room.noticed(self.folder):
            self.writer.finish(self.index, results)
            save_config(CheckpointingConfig(*FORMAT), str(self.folder))

    @staticmethod
    def _located(failure: Failure | None) -> Failure | None:
        return failure and Failure(f"on {socket.gethostname()}: {failure.text}", failure.full)


def begin(folder: Path, state: dict[str, Any], *, content: dict[str, Any]) -> Writing:
    """Plan a checkpoint of `state` into an empty folder, and begin to write it. Every rank calls it.

    Raises DiskFull or MconvError on all ranks where rank 0 cannot write there.
    """
    sharded, common = save_preprocess({**state, "content_metadata": dict(content)})
    agree.on_rank_0(lambda: _common(common, folder))
    writer, index = _Plan(*FORMAT, thread_count=1).async_save(sharded, folder)
    writing = Writing(folder=folder, writer=writer, index=index)
    writing.start()
    return writing


def _common(common: dict[str, Any], folder: Path) -> None:
    with room.noticed(folder):
        TorchCommonSaveStrategy("torch", 1).save_common(common, folder)


def _how(code: int | None) -> str:
    if code == -signal.SIGKILL:
        return "was killed (out of memory?)"
    return f"was ended by {signal.Signals(-code).name}" if code and code < 0 else f"ended with exit code {code}"


# ---- in the forked process -------------------------------------------------------------------------------------------
def _write(writer: Any, bucket: Any, answer: Connection) -> None:
    """Write one file, and send back what is where in it, or a Failure."""
    end_with_parent(signal.SIGKILL)
    _first_to_go()
    said: queue.SimpleQueue[Any] = queue.SimpleQueue()
    transforms = [writer.transforms] if hasattr(writer, "transforms") else []
    writer.write_preloaded_data(transforms, 0, bucket, said, _Uncounted(), use_fsync=True)
    _, results = said.get()
    if isinstance(results, Exception):
        results = Failure(f"{bucket[0]}: {results}", room.full(results, Path(bucket[0]).parent))
    answer.send(results)


@contextlib.contextmanager
def _forking() -> Iterator[None]:
    """Disable garbage collection in processes forked within: it would free tensors on a device that is not theirs."""
    collects = gc.isenabled()
    gc.disable()
    try:
        with warnings.catch_warnings():  # of Python 3.12, on threads: the process takes none of their locks
            warnings.simplefilter("ignore", DeprecationWarning)
            yield
    finally:
        if collects:
            gc.enable()


class _Uncounted:
    """Stands in for megatron-core's queue, which counts its helper processes."""

    def get(self) -> None: ...

    def task_done(self) -> None: ...


def _first_to_go() -> None:
    """Let the kernel kill this process before its rank if memory runs out: a checkpoint can be saved again."""
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")
