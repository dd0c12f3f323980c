"""Save checkpoints: write into a hidden folder, in the foreground or background; rename when whole; remove the oldest."""

import contextlib
import secrets
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from mconv.errors import CheckFailed, DiskFull, FormatError, MconvError
from mconv.train.checkpoints import disk, folders, writing
from mconv.train.checkpoints.run_lock import RunLock, locked
from mconv.train.estimate import storage
from mconv.train.megatron import collectives
from mconv.train.megatron.imports import quiet

Finish = Callable[[Path], None]
"""Completes a hidden folder, on rank 0."""
Then = Callable[[], None]
"""Called on every rank when a checkpoint is whole."""

ENDS = ". The run ends here, and the steps since then are lost; free some space, and the same command resumes"
"""Follows the message where a full disk ends the run."""
OR_GOES_ON = "; with --on-full-disk continue a run trains on and tries again at its next save"


def nothing() -> None:
    """Do nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PendingSave:
    """A checkpoint that is being written."""

    iteration: int
    files: writing.Writing
    finish: Finish
    then: Then
    background: bool


@dataclass(slots=True, kw_only=True)
class Saver:
    """Writes a run's checkpoints, one at a time. All ranks call its methods at the same steps, and all fail or none."""

    root: Path
    content: dict[str, Any]
    """Metadata that tells megatron-core how to lay out the optimizer state."""
    say: Callable[[str], None]
    background: bool = False
    """True if training continues while files are written."""
    keep: storage.Keep = field(default_factory=storage.Keep)
    size: int = 0
    """Bytes of a checkpoint, as estimated."""
    skips: bool = False
    """True if a full disk skips a save instead of ending the run, as long as steps are to come."""
    last: bool = False
    """True after the last step: what is not saved now is lost."""
    saved: int | None = None
    """The last iteration that is whole on disk: this run's, or the one that it resumed from."""
    confirm: Callable[[], None] = nothing
    """Called on rank 0 once the folder is locked: raises if another run has saved there since this one was started."""
    read: Callable[[], set[int]] = set
    """Returns, on rank 0, the iterations that a background command is still reading."""
    others: set[int] = field(default_factory=set)
    """Iterations that another program set the tracker to: another job may resume from them."""
    pending: PendingSave | None = None
    owed: bool = False
    """True if the last background save failed: the next step saves again at once."""
    lock: RunLock | None = None
    leaving: list[threading.Thread] = field(default_factory=list)
    """Threads that remove old checkpoints: to unlink gigabytes takes a while."""

    def has(self, iteration: int) -> bool:
        """Return whether an iteration is saved or being saved."""
        return iteration in (self.saved, self.pending and self.pending.iteration)

    @quiet()
    def save(self, iteration: int, state: dict[str, Any], *, finish: Finish, then: Then) -> None:
        """Write `state` as an iteration's folder, or start to; waits for a save that is still in progress.

        `finish` completes the folder while it is hidden, on rank 0; `then` is called on all ranks when it is whole.
        """
        self.settle()
        try:
            hidden = collectives.on_rank_0(lambda: self._hidden(iteration))
            files = writing.begin(hidden, state, content=self.content)
        except MconvError as error:
            collectives.on_rank_0(partial(folders.clear, self.root))
            self._lost(iteration, error, background=self.background)
            return
        self.pending = PendingSave(iteration=iteration, files=files, finish=finish, then=then, background=self.background)
        if not self.background:
            self.settle()

    @quiet()
    def poll(self) -> None:
        """Publish the background checkpoint if all ranks have written their files; called at every step."""
        if self.pending and collectives.everywhere(self.pending.files.done()):
            self._end(self.pending)

    @quiet()
    def settle(self) -> None:
        """Wait for the checkpoint that is being written, and for the removal of old ones."""
        if self.pending:
            collectives.wait(self.pending.files.done)
            self._end(self.pending)
        while self.leaving:
            self.leaving.pop().join()

    @contextlib.contextmanager
    def at_work(self) -> Iterator[None]:
        """Hold the folder for this run. An orderly end waits for the save in progress; a failing rank abandons it."""
        with locked(self.root) as self.lock:
            collectives.on_rank_0(self.confirm)
            try:
                yield
            except CheckFailed:  # on all ranks: what was saved before is good
                self.settle()
                raise
            except BaseException:
                if self.pending:
                    self.pending.files.give_up()
                raise
            self.settle()

    def _hidden(self, iteration: int) -> Path:
        """Make a new hidden folder for this save, and remove those that killed saves have left."""
        hidden = self.root / f".{folders.folder_of(self.root, iteration).name}.{secrets.token_hex(4)}.partial"
        with disk.noticed():
            folders.clear(self.root)
            hidden.mkdir(parents=True)
        return hidden

    def _end(self, save: PendingSave) -> None:
        """Publish a checkpoint whose files all ranks have written, or remove it if one rank could not."""
        self.pending = None
        try:
            save.files.close()
            collectives.on_rank_0(partial(self._publish, save))
        except MconvError as error:
            collectives.on_rank_0(partial(folders.discard, self.root, save.files.folder))
            self._lost(save.iteration, error, background=save.background)
            return
        self.saved, self.owed = save.iteration, False
        save.then()

    def _lost(self, iteration: int, error: MconvError, *, background: bool) -> None:
        """Report a checkpoint that was not saved. Raises it, unless the run goes on by policy or saves again at once.

        What the background could not do is done in the foreground from here on; what that cannot do ends the run.
        """
        there = "there is no checkpoint yet" if self.saved is None else f"the last checkpoint is {self.saved}"
        full = isinstance(error, DiskFull)
        why = f"{collectives.on_rank_0(self._shortage)}: {error}" if full else str(error)
        text = f"{self.root}: iteration {iteration} was not saved: {why}; {there}"
        if full and self.skips and not self.last:
            self.owed = False
            self.say(f"warning: {text}. Training continues, and the next save tries again; free some space until then")
        elif background:
            self.background, self.owed = False, True
            self.say(f"warning: {text}. From here on training waits for its saves")
        else:
            more = ENDS + ("" if self.skips else OR_GOES_ON) if full else ""
            raise type(error)(text + more) from error

    def _shortage(self) -> str:
        """Return the bytes of a checkpoint and the free space, after the half-written one has been removed."""
        return (
            f"no room left on the disk of {self.root}, which has {disk.readable(disk.free(self.root))} free, and a "
            f"checkpoint takes about {disk.readable(self.size)}"
        )

    def _publish(self, save: PendingSave) -> None:
        """Add the sidecar files, rename the folder, change the tracker; only then remove expired checkpoints."""
        with disk.noticed():
            save.finish(save.files.folder)
            if self.lock:
                self.lock.check()
            pointer = folders.pointer(self.root, save.iteration)
            folders.publish(save.files.folder, folders.folder_of(self.root, save.iteration))
        with contextlib.suppress(FormatError):  # whatever it says, it is about to say another thing
            if (named := folders.latest(self.root)) not in (None, self.saved, save.iteration):
                self.others.add(int(named))
        folders.move_tracker(self.root, pointer)
        for old in self._expired(save.iteration):
            try:
                self.leaving.append(folders.remove(old))
            except OSError as error:
                self.say(f"warning: {old} is due to be removed, but {error.strerror}")

    def _expired(self, now: int) -> list[Path]:
        """Return the checkpoints to remove: mconv's own, except what `keep` or the tracker retains or somebody reads.

        Iterations after `now` are from before the run was set back: they stay until it replaces them.
        """
        if self.keep.last is None:
            return []
        mine = [i for i in folders.iterations(self.root) if i <= now and folders.ours(folders.folder_of(self.root, i))]
        stay = {*self.others, *self.read()}
        return [folders.folder_of(self.root, i) for i in self.keep.expired(mine) if i not in stay]
