"""How checkpoints come to be: written beside, at once or while training goes on; named when whole; the oldest let go.

megatron-core plans a save on all ranks and hands over the writing as a request. Done in place it is a synchronous save.
Done by a forked process on each rank, whose memory is a picture of the moment, it is an asynchronous one: training goes
on, and what comes after the writing (index, name, tracker) follows at the first step at which all ranks have finished.
"""

import contextlib
import os
import re
import secrets
import shutil
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint import CheckpointException

from mconv.convert import manifest
from mconv.convert.checkpoint import TRACKER
from mconv.errors import CheckFailed, FormatError, MconvError
from mconv.train.mcore import AsyncCallsQueue, dist_checkpointing, quiet
from mconv.train.parallel import from_rank_0

Finish = Callable[[Path], None]
"""Completes a hidden folder, on rank 0."""
Then = Callable[[], None]
"""Called on every rank when a checkpoint is whole."""


def nothing() -> None:
    """What follows by itself."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Keep:
    """Which checkpoints stay."""

    last: int | None = None
    """The newest so many; all if None."""
    every: int | None = None
    """And those whose iteration is a multiple of this."""


@dataclass(slots=True, kw_only=True)
class Saver:
    """Writes a run's checkpoints, one at a time. All ranks call its methods at the same steps."""

    root: Path
    content: dict[str, Any]
    """How megatron-core is to lay out the optimizer's state."""
    background: bool = False
    """Whether training goes on while files are written."""
    keep: Keep = field(default_factory=Keep)
    saved: int | None = None
    """The last iteration that is whole on disk: this run's, or what it goes on from."""
    others: set[int] = field(default_factory=set)
    """Iterations that the tracker named, but not by us: another job may go on from there."""
    queue: Any = field(default_factory=AsyncCallsQueue)
    pending: int | None = None
    """The iteration that is being written."""
    leaving: list[threading.Thread] = field(default_factory=list)
    """Removals of old checkpoints, which need not be waited for: to unlink gigabytes takes a while."""

    @quiet()
    def save(self, iteration: int, state: dict[str, Any], *, finish: Finish, then: Then) -> None:
        """Write `state` as an iteration's folder, or begin to; one that is still under way is waited for.

        `finish` completes the folder while it is hidden, on rank 0; `then` is called on all ranks when it is whole.
        """
        self.settle()
        partial = self._begin(iteration)
        request = dist_checkpointing.save(
            state, str(partial), content_metadata=dict(self.content), async_sharded_save=True
        )
        request.add_finalize_fn(lambda: self._complete(partial, iteration, finish, then))
        self.pending = iteration
        with self._told():
            if self.background:
                self.queue.schedule_async_request(request)
            else:
                request.execute_sync()

    @quiet()
    def poll(self) -> None:
        """At every step: name the checkpoint whose files all ranks have written meanwhile, if any."""
        if self.pending is not None:
            with self._told():
                self.queue.maybe_finalize_async_calls(blocking=False)

    @quiet()
    def settle(self) -> None:
        """Wait for the checkpoint that is being written, and for old ones to be gone."""
        if self.pending is not None:
            with self._told():
                self.queue.maybe_finalize_async_calls(blocking=True)
        while self.leaving:
            self.leaving.pop().join()

    @contextlib.contextmanager
    def settled(self) -> Iterator[None]:
        """Whatever ends the steps in order ends the writing too; what ends this rank alone gives it up."""
        try:
            yield
        except CheckFailed:  # on all ranks: what was saved before is good
            self.settle()
            raise
        except BaseException:
            for call in self.queue.async_calls:
                call.async_caller.close(abort=True)
            raise
        self.settle()

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        """A writer's error, with the iteration that is lost to it and the one that is there."""
        try:
            yield
        except CheckpointException as error:
            iteration, self.pending = self.pending, None
            why = "; ".join(str(failure[0]) for failure in error.failures.values()) or "another rank's writer failed"
            raise MconvError(
                f"{self.root}: iteration {iteration} was not saved: {why}; the last checkpoint is {self.saved}"
            ) from error

    def _begin(self, iteration: int) -> Path:
        """A hidden folder of this save's own: what an older one left is removed, and cannot reach into this one."""
        partial = self.root / from_rank_0(f".iter_{iteration:07d}.{secrets.token_hex(4)}.partial")
        if torch.distributed.get_rank() == 0:
            for left in (*self.root.glob(".iter_*.partial"), *self.root.glob(".iter_*.old")):
                shutil.rmtree(left, ignore_errors=True)
            partial.mkdir(parents=True)
        torch.distributed.barrier()
        return partial

    def _complete(self, partial: Path, iteration: int, finish: Finish, then: Then) -> None:
        """The folder gets what is beside the tensors, then its name; the tracker changes; then the oldest may go."""
        folder = folder_of(self.root, iteration)
        if torch.distributed.get_rank() == 0:
            finish(partial)
            publish(partial, folder)
            if (named := latest(self.root)) not in (None, self.saved, iteration):
                self.others.add(int(named))
            point(self.root, iteration)
            for old in self._expired():
                self.leaving.append(remove(old))
        torch.distributed.barrier()
        self.saved, self.pending = iteration, None
        then()

    def _expired(self) -> list[Path]:
        """Checkpoints to let go: mconv's own, beyond those that `keep` and the tracker name."""
        if self.keep.last is None:
            return []
        mine = sorted(i for i in iterations(self.root) if ours(folder_of(self.root, i)))
        every = self.keep.every
        stay = {*mine[-self.keep.last :], latest(self.root), *self.others}
        stay |= {i for i in mine if every and i % every == 0}
        return [folder_of(self.root, i) for i in mine if i not in stay]


def ours(folder: Path) -> bool:
    """Whether a run of mconv's wrote it."""
    try:
        steps = [step.get("step") for step in (manifest.read(folder) or {}).get("history", [])]
    except (MconvError, AttributeError):
        return False
    return steps[-1:] == ["train"]


# ---- a root and its iterations ---------------------------------------------------------------------------------------
def latest(root: Path) -> int | None:
    """The iteration that a folder's tracker names, or None if there is none (or it is a converted `release`)."""
    tracker = root / TRACKER
    word = tracker.read_text(errors="replace").strip() if tracker.is_file() else "release"
    if word != "release" and not re.fullmatch(r"\d{1,12}", word):
        raise FormatError(f"{tracker} says {word[:40]!r}; it must be an iteration number or 'release'")
    return None if word == "release" else int(word)


def folder_of(root: Path, iteration: int) -> Path:
    """Where an iteration's checkpoint lies."""
    return root / f"iter_{iteration:07d}"


def iterations(root: Path) -> list[int]:
    """The iterations that a folder holds, in order."""
    names = (path.name for path in root.glob("iter_*") if path.is_dir())
    return sorted(int(name.removeprefix("iter_")) for name in names if re.fullmatch(r"iter_\d{7,12}", name))


def publish(partial: Path, folder: Path) -> None:
    """Flush the folder to disk and give it its name; an older one of that name goes only then."""
    for path in partial.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
    old = _hidden(folder)
    if folder.exists():
        folder.rename(old)
    partial.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def remove(folder: Path) -> threading.Thread:
    """Let a checkpoint go: hidden at once, so that a kill in the middle leaves no half of it in sight."""
    old = _hidden(folder)
    folder.rename(old)
    going = threading.Thread(target=shutil.rmtree, args=(old,), kwargs={"ignore_errors": True})
    going.start()
    return going


def _hidden(folder: Path) -> Path:
    old = folder.with_name(f".{folder.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    return old


def point(root: Path, iteration: int) -> None:
    """Let the tracker name this iteration, in one step."""
    beside = root / f".{TRACKER}.part"
    with beside.open("w") as file:
        file.write(f"{iteration}\n")
        file.flush()
        os.fsync(file.fileno())
    beside.replace(root / TRACKER)
