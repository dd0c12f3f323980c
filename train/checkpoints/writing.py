"""Write a checkpoint's files: laid out by all ranks, one written by each; all succeed or the checkpoint fails.

A rank's file is written by a forked process, whose memory is a snapshot, and which starts no other processes. Its
rank holds one end of a pipe to it, so that whatever ends the process is noticed.
"""

import contextlib
import gc
import multiprocessing
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

from mconv.convert.formats import distcp
from mconv.errors import DiskFull, MconvError
from mconv.train.checkpoints import disk, shards
from mconv.train.launch.parent_death import end_with_parent
from mconv.train.megatron import collectives
from mconv.train.megatron.collectives import from_all_ranks
from mconv.train.megatron.parallel import timeout_minutes

FileParts = list[tuple[distcp.Part, torch.Tensor | None]]
"""A rank's file: its parts, each with its tensor (None: an object, which its archive holds)."""


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a rank's file is not whole."""

    text: str
    full: bool = False
    """True if its disk is full."""


@dataclass(slots=True, kw_only=True)
class Writing:
    """A checkpoint that is being written, as one rank sees it. All ranks call `close` at the same time, once."""

    folder: Path
    parts: FileParts
    """The parts of this rank's file, held until the process is gone: released pinned copies are used again."""
    index: list[distcp.Entry]
    """Entries of the files of all ranks, on rank 0; empty on the others."""
    file: Path | None = None
    process: Any = None
    pipe: Connection | None = None
    """Receives the process's report; None once it is here, or if this rank has nothing to write."""
    failure: Failure | None = None
    """Why this rank's file will not be whole."""
    size: int = -1
    heard: float = field(default_factory=time.monotonic)
    """Time at which the file last grew."""

    def start(self) -> None:
        """Start to write this rank's file; an error becomes a `failure`, which `close` shares with all ranks."""
        if not self.parts:
            return
        try:
            self.parts = _on_host(self.parts)
            self._fork(self.folder / self.parts[0][0].entry.file)
        except (OSError, RuntimeError, MemoryError) as error:  # no memory for the copies, or for a process
            self.give_up()
            self.failure = Failure(f"no writer could be started: {error}")

    def _fork(self, file: Path) -> None:
        # Forked after step 10, the process writes the weights of step 10 while its rank takes step 11. What comes through
        # the pipe: None (the file is whole), a Failure, or the end of the pipe (the process has died).
        context = multiprocessing.get_context("fork")
        self.file, (self.pipe, there) = file, context.Pipe(duplex=False)
        self.process = context.Process(target=_write, args=(file, self.parts, there), daemon=True)
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
            said: Failure | None = pipe.recv()
        except (EOFError, OSError):
            self.process.join()
            said = Failure(f"its writer {_how(self.process.exitcode)}")
        self.give_up()
        self.failure = said

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
        self.parts = []

    def close(self) -> None:
        """Let rank 0 write the index when all are `done`.

        Raises on all ranks if one of them could not write: DiskFull where one had no room, else MconvError.
        """
        failures = [(rank, why) for rank, why in enumerate(from_all_ranks(self._located(self.failure))) if why]
        if failures:
            more = f"; and {len(failures) - 3} ranks more" if len(failures) > 3 else ""
            kind = DiskFull if any(why.full for _, why in failures) else MconvError
            raise kind("; ".join(f"rank {rank} {why.text}" for rank, why in failures[:3]) + more)
        collectives.on_rank_0(self._finish)

    def _finish(self) -> None:
        with disk.noticed():
            distcp.write_index(self.folder, self.index)
            distcp.write_versions(self.folder)

    @staticmethod
    def _located(failure: Failure | None) -> Failure | None:
        return failure and Failure(f"on {socket.gethostname()}: {failure.text}", failure.full)


def begin(folder: Path, state: dict[str, Any], *, content: dict[str, Any]) -> Writing:
    """Lay out a checkpoint of `state` in an empty folder, and begin to write it. Every rank calls it.

    Raises DiskFull or MconvError on all ranks where rank 0 cannot write there, or where they do not write everything
    once.
    """
    common, found = shards.take_apart({**state, "content_metadata": dict(content)})
    parts = shards.lay_out(found, rank=torch.distributed.get_rank())
    shares = _on_rank_0(shards.share_of(found, [part.entry for part, _ in parts]))

    def first() -> None:
        shards.check(shares)
        with disk.noticed():
            distcp.write_common(folder, common)

    collectives.on_rank_0(first)
    writing = Writing(folder=folder, parts=parts, index=[entry for share in shares for entry in share.entries])
    writing.start()
    return writing


def _on_rank_0(value: Any) -> list[Any]:
    """Return every rank's value on rank 0, and nothing on the others."""
    if torch.distributed.get_rank():
        torch.distributed.gather_object(value)
        return []
    gathered: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.gather_object(value, gathered)
    return gathered


def _on_host(parts: FileParts) -> FileParts:
    """Return what the process can read: from a device a copy, through pinned memory; on the host the tensors as they are.

    They are contiguous: to make them so later would start threads, which a forked process cannot.
    """
    copied = [
        (part, tensor if tensor is None else tensor.detach().contiguous().to("cpu", non_blocking=True))
        for part, tensor in parts
    ]
    torch.cuda.synchronize()
    return copied


def _how(code: int | None) -> str:
    if code == -signal.SIGKILL:
        return "was killed (out of memory?)"
    return f"was ended by {signal.Signals(-code).name}" if code and code < 0 else f"ended with exit code {code}"


# ---- in the forked process -------------------------------------------------------------------------------------------
def _write(file: Path, parts: FileParts, answer: Connection) -> None:
    """Write one file, and send back why it is not whole, or None."""
    end_with_parent(signal.SIGKILL)
    _first_to_go()
    failure = None
    try:
        distcp.write_file(file, parts)
    except Exception as error:
        failure = Failure(f"{file}: {error}", disk.full(error))
    answer.send(failure)


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


def _first_to_go() -> None:
    """Let the kernel kill this process before its rank if memory runs out: a checkpoint can be saved again."""
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")
