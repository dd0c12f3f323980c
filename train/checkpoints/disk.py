"""Disk space for a run's checkpoints: checked before the first step, and reported when it runs out."""

import contextlib
import dataclasses
import errno
import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from mconv.convert.folders.host import existing, nbytes
from mconv.errors import ConfigError, DiskFull, MconvError
from mconv.train.checkpoints import folders
from mconv.train.config import TrainConfig
from mconv.train.estimate import storage
from mconv.train.estimate.storage import Keep

FULL = (errno.ENOSPC, errno.EDQUOT)


@dataclass(frozen=True, slots=True, kw_only=True)
class DiskSpace:
    """Checkpoints that a run is about to write, and the disk space for them."""

    size: int
    """Bytes of one checkpoint."""
    free: int
    keep: Keep
    present: dict[int, int] = field(default_factory=dict)
    """Bytes of the run's checkpoints that are there already, by iteration: they may be removed in time."""
    export: Callable[[int], int] = lambda _: 0
    """Bytes of what is exported of an iteration, beside its checkpoint."""

    def full_at(self, saves: Iterable[int]) -> int | None:
        """Return the first of the iterations to save that has no room; None if all have.

        A checkpoint is written beside the old ones, of which some go once it is whole.
        """
        free, there = self.free, dict(self.present)
        for iteration in saves:
            if free < self.size:
                return iteration
            free += there.pop(iteration, 0) - self.size - self.export(iteration)
            there[iteration] = self.size
            if self.keep.last:
                gone = set(self.keep.expired(there))
                free += sum(there[old] for old in gone)
                newest = sorted(there)[-self.keep.last :]
                there = {one: there[one] for one in newest}  # others are gone, or stay for good
        return None


def saves(config: TrainConfig, *, iteration: int, iterations: int) -> list[int]:
    """Return the iterations that a start of a run will save, up to its last one or the one that it exits after."""
    return storage.saved(config, min(iterations, config.exit_after or iterations), after=iteration)


# ---- before the first step -------------------------------------------------------------------------------------------
def check(config: TrainConfig, size: int, *, weights: int, iteration: int, iterations: int) -> Iterator[str]:
    """Yield a warning where the disk will be full before the run's end; for rank 0.

    `size`: bytes of a checkpoint, `weights`: of its weights, as an export has them. Raises ConfigError where not even
    the next checkpoint fits, unless the configuration lets that pass. What a quota leaves cannot be known.
    """
    root, todo = Path(str(config.save)), saves(config, iteration=iteration, iterations=iterations)
    room = DiskSpace(
        size=size, free=free(root), keep=Keep(config.keep_last, config.keep_every),
        export=lambda i: weights if exports(config, i, iterations) else 0,
    )  # fmt: skip
    if room.full_at(todo) is None:  # without a look at every file that is there
        return
    room = dataclasses.replace(room, free=room.free + _left(root), present=_present(root))
    if (full := room.full_at(todo)) is None:
        return
    needs = f"{existing(root)} has {readable(room.free)} free, and each checkpoint takes about {readable(size)}"
    if full != todo[0]:
        fits = todo[todo.index(full) - 1]
        yield (
            f"warning: the disk of --save will be full after about iteration {fits} of {todo[-1]}: {needs}; "
            f"{_fewer(room, todo)}a larger --save-interval writes fewer"
        )
        return
    text = f"no room for a checkpoint: {needs} while it is written, next to the existing ones"
    if not config.allow_full_disk:
        raise ConfigError(f"{text}; free some space, choose another --save, or start anyway with --allow-full-disk")
    yield f"warning: {text}"


def _fewer(room: DiskSpace, todo: list[int]) -> str:
    """Return which `--keep-last` the disk has room for, or an empty text where even one has none."""
    for last in range((room.keep.last or 3) - 1, 0, -1):
        if dataclasses.replace(room, keep=dataclasses.replace(room.keep, last=last)).full_at(todo) is None:
            return f"--keep-last {last} keeps only the newest, "
    return ""


def exports(config: TrainConfig, iteration: int, iterations: int) -> bool:
    """Return whether an iteration's checkpoint is exported to Hugging Face's format, beside it."""
    every, interval = config.export_hf_every, config.save_interval
    return bool(every) and (iteration == iterations or (bool(interval) and iteration % (every * interval) == 0))


def _present(root: Path) -> dict[int, int]:
    found = {iteration: folders.folder_of(root, iteration) for iteration in folders.iterations(root)}
    return {iteration: nbytes(folder) for iteration, folder in found.items() if folders.ours(folder)}


def _left(root: Path) -> int:
    """Return the bytes that saves which were killed have left, and that the next save removes."""
    return sum(nbytes(folder) for folder in folders.leftovers(root))


def free(folder: Path) -> int:
    """Return the bytes that this user may still write on a folder's disk."""
    return shutil.disk_usage(existing(folder)).free


def readable(size: int) -> str:
    """Return a number of bytes as people write it."""
    for unit, name in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB")):
        if size >= unit:
            return f"{size / unit:.1f} {name}"
    return f"{size / 1e3:.0f} kB"


# ---- when it runs out ------------------------------------------------------------------------------------------------
@contextlib.contextmanager
def noticed() -> Iterator[None]:
    """Raise DiskFull for what cannot be written within for want of room, MconvError for another reason."""
    try:
        yield
    except OSError as error:
        raise (DiskFull if full(error) else MconvError)(str(error)) from error


def full(error: BaseException) -> bool:
    """Return whether an error came of a full disk, or of a quota."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.errno is not None:
            return cause.errno in FULL
        cause = cause.__cause__ or cause.__context__
    return False
