"""One unit of work: a logical tensor is pulled slab by slab, checked, hashed, and written to all that stores it."""

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from isal import isal_zlib

from mconv.convert.digests import ALGORITHM, ALGORITHMS
from mconv.convert.formats.laid import Spot
from mconv.convert.formats.mapped import bytes_of
from mconv.convert.formats.tensors import Target
from mconv.convert.lock import BINARY
from mconv.convert.source import Progress, Scratch, Slab, Source, check_copies_of, check_finite, check_zero, quiet
from mconv.convert.table import Logical, Stored
from mconv.shard.axes import intersect, within
from mconv.shard.patch import Patch, by_stride, contiguous_runs, patch_of

ZEROS = bytes(1 << 20)
WRITE_BYTES = 512 << 10
"""How much is written at once: for more, the page cache looks for larger free blocks, which can cost ten times more."""


@dataclass(frozen=True, slots=True)
class Goal:
    """A target of a unit: the tensor to be written, what it holds of the logical tensor, and where its bytes lie."""

    target: Target
    stored: Stored
    spot: Spot


@dataclass(frozen=True, slots=True)
class Unit:
    """A logical tensor and all that stores it in the target. Units are independent, so they can be done in any order."""

    logical: Logical
    goals: tuple[Goal, ...]
    nbytes: int
    """What it is in the target."""
    digest: bool
    """Whether it is in the architecture; if not it is a bias that some format must store, and zero."""


@dataclass(frozen=True, slots=True)
class Done:
    """What is known of a logical tensor that was dealt with."""

    logical: str
    digests: dict[str, str]
    """`cast`: of what was written. `source`: of what was read, by the algorithm of the source's manifest."""
    crcs: dict[str, int]
    """crc32 of each target's bytes, by key, if the format wants it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """What holds for every unit of a conversion."""

    source: Source
    folder: Path
    cast: torch.dtype | None
    allow_nonfinite: bool
    checksums: bool
    recorded: str
    """The algorithm of the digests in the source's manifest."""
    progress: Progress = quiet
    alive: Callable[[], None] = lambda: None
    """Called at every slab; raises if the work should be given up."""


def carry(unit: Unit, terms: Terms, scratch: Scratch) -> Done:
    """Do one unit. Raises FormatError for what must not be converted, OSError if a write fails."""
    writers = [_Writer.of(goal, terms) for goal in unit.goals]
    if unit.logical not in terms.source.groups:  # a bias that the target must store and the source has not: zeros
        return Done(str(unit.logical), {}, {w.key: w.crc() for w in writers if terms.checksums})
    cast = ALGORITHMS[ALGORITHM]()
    read = None if terms.cast is None and terms.recorded == ALGORITHM else ALGORITHMS[terms.recorded]()
    keep = min([terms.source.split(unit.logical), *(patch.split for w in writers for patch in w.patches)])
    try:
        for slab in terms.source.slabs(unit.logical, scratch, keep=keep):
            terms.alive()
            wanted = scratch.cast("cast", slab.tensor, terms.cast)
            _check(unit, terms, slab, wanted)
            cast.update(bytes_of(wanted))
            if read is not None:
                read.update(bytes_of(slab.tensor))
            terms.progress(sum(w.write(Slab(slab.box, wanted), scratch) for w in writers))
    finally:
        for writer in writers:
            writer.close()
    made = cast.hexdigest()
    digests = {"cast": made, "source": read.hexdigest() if read else made} if unit.digest else {}
    return Done(str(unit.logical), digests, {w.key: w.crc() for w in writers if terms.checksums})


def _check(unit: Unit, terms: Terms, slab: Slab, wanted: torch.Tensor) -> None:
    if not terms.allow_nonfinite:
        check_finite(terms.source, unit.logical, wanted, cast=terms.cast)
    check_copies_of(terms.source, unit.logical, slab)
    if not unit.goals:
        check_zero(terms.source, unit.logical, slab)


@dataclass(slots=True)
class _Writer:
    """Writes slabs of a logical tensor to where one target has them."""

    key: str
    nbytes: int
    start: int
    path: Path
    patches: tuple[Patch, ...]
    checksums: bool
    runs: list[tuple[int, int, int]] = field(default_factory=list)
    """Offset, length and crc32 of each run that was written."""
    file: int | None = None

    @classmethod
    def of(cls, goal: Goal, terms: Terms) -> "_Writer":
        patches = tuple(patch_of(goal.stored.piece.shape, block) for block in goal.stored.piece.blocks)
        path = terms.folder / goal.spot.file
        return cls(goal.target.key, goal.target.nbytes, goal.spot.offset, path, patches, terms.checksums)

    def write(self, slab: Slab, scratch: Scratch) -> int:
        """Write what the target has of the slab; returns how many bytes that was."""
        written = 0
        for patch in self.patches:
            both = intersect(patch.box, slab.box)
            if both is None:
                continue
            offset, dims = patch.cut(both)
            order = by_stride(dims)
            part = slab.tensor[within(both, slab.box)].view([n for n, _ in dims]).permute(order)
            for at, index in contiguous_runs(tuple(dims[i] for i in order)):
                data = bytes_of(scratch.packed("run", part[index]))
                self._put((offset + at) * slab.tensor.itemsize, data)
                written += len(data)
        return written

    def _put(self, at: int, data: memoryview) -> None:
        if self.file is None:
            self.file = os.open(self.path, os.O_WRONLY | BINARY)
        if self.checksums:
            self.runs.append((at, len(data), isal_zlib.crc32(data)))
        done = 0
        while done < len(data):
            done += _write_at(self.file, data[done : done + WRITE_BYTES], self.start + at + done)

    def crc(self) -> int:
        """crc32 of the whole target: its runs in the order in which they lie, zeros (padding) where none was written."""
        total, end = 0, 0
        for at, length, crc in [*sorted(self.runs), (self.nbytes, 0, 0)]:
            total = _zeros(total, at - end)
            total = isal_zlib.crc32_combine(total, crc, length)
            end = at + length
        return total

    def close(self) -> None:
        if self.file is not None:
            os.close(self.file)
            self.file = None


def _write_at(file: int, data: memoryview, at: int) -> int:
    """Write at a place of a file of which nobody else has this descriptor."""
    if hasattr(os, "pwrite"):  # not on Windows
        return os.pwrite(file, data, at)
    os.lseek(file, at, os.SEEK_SET)
    return os.write(file, data)


def _zeros(crc: int, length: int) -> int:
    """The crc32 after so many zero bytes."""
    for at in range(0, length, len(ZEROS)):
        crc = isal_zlib.crc32(ZEROS[: length - at] if length - at < len(ZEROS) else ZEROS, crc)
    return crc
