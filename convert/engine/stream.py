"""One task of a conversion: a logical tensor is pulled slab by slab, checked, hashed, and written to its destinations."""

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from isal import isal_zlib

from mconv.convert.engine.tasks import CopyTask, Destination
from mconv.convert.folders.digests import ALGORITHM, ALGORITHMS
from mconv.convert.folders.lock import BINARY
from mconv.convert.formats.dtype import in_torch
from mconv.convert.formats.mapped import bytes_of
from mconv.convert.sources.checks import check_copies_of, check_finite, check_zero
from mconv.convert.sources.read import Progress, quiet, slabs
from mconv.convert.sources.scratch import Scratch
from mconv.convert.sources.source import Slab, split_of
from mconv.shard.axes import intersect, within
from mconv.shard.patch import Patch, by_stride, contiguous_runs, patch_of

ZEROS = bytes(1 << 20)
WRITE_BYTES = 512 << 10
"""Bytes written at once: for more, the page cache looks for larger free blocks, which can cost ten times more."""


@dataclass(frozen=True, slots=True)
class CopyResult:
    """The result of copying a logical tensor: a line of the journal."""

    logical: str
    """The logical tensor's name, with the prefix of its part."""
    digests: dict[str, str]
    """`cast`: of what was written. `source`: of what was read, by the algorithm of the source's manifest."""
    crcs: dict[str, int]
    """crc32 of each target's bytes, by key, if the format wants it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CopyContext:
    """The settings that all tasks of a conversion share."""

    folder: Path
    allow_nonfinite: bool
    checksums: bool
    recorded: str
    """The algorithm of the digests in the source's manifest."""
    progress: Progress = quiet
    alive: Callable[[], None] = lambda: None
    """Called at every slab; raises if the work should be given up."""


def stream(task: CopyTask, context: CopyContext, scratch: Scratch) -> CopyResult:
    """Carry out one task. Raises FormatError for what must not be converted, OSError if a write fails."""
    writers = [_Writer.of(destination, context) for destination in task.destinations]
    source, dtype = task.part.source, in_torch(task.part.dtype) if task.part.dtype else None
    if task.logical not in source.tensors():  # a bias that the target must store and the source has not: zeros
        return CopyResult(task.name, {}, {w.key: w.crc() for w in writers if context.checksums})
    cast = ALGORITHMS[ALGORITHM]()
    read = None if dtype is None and context.recorded == ALGORITHM else ALGORITHMS[context.recorded]()
    keep = min([split_of(source, task.logical), *(patch.split for w in writers for patch in w.patches)])
    try:
        for slab in slabs(source, task.logical, scratch, keep=keep):
            context.alive()
            wanted = scratch.cast("cast", slab.tensor, dtype)
            _check(task, context, slab, wanted)
            cast.update(bytes_of(wanted))
            if read is not None:
                read.update(bytes_of(slab.tensor))
            context.progress(sum(w.write(Slab(slab.box, wanted), scratch) for w in writers))
    finally:
        for writer in writers:
            writer.close()
    made = cast.hexdigest()
    digests = {"cast": made, "source": read.hexdigest() if read else made} if task.digest else {}
    return CopyResult(task.name, digests, {w.key: w.crc() for w in writers if context.checksums})


def _check(task: CopyTask, context: CopyContext, slab: Slab, wanted: torch.Tensor) -> None:
    source, dtype = task.part.source, wanted.dtype if task.part.dtype else None
    if not context.allow_nonfinite:
        check_finite(source, task.logical, wanted, cast=dtype)
    check_copies_of(source, task.logical, slab)
    if not task.destinations:
        check_zero(source, task.logical, slab)


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
    def of(cls, destination: Destination, context: CopyContext) -> "_Writer":
        patches = tuple(patch_of(destination.stored.piece.shape, block) for block in destination.stored.piece.blocks)
        path = context.folder / destination.extent.file
        return cls(
            destination.target.key, destination.target.nbytes, destination.extent.offset, path, patches, context.checksums
        )

    def write(self, slab: Slab, scratch: Scratch) -> int:
        """Write what the target has of the slab; return how many bytes that was."""
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
        """Return the crc32 of the whole target: its runs in the order in which they lie, zeros where none was written."""
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
    """Return a crc32 continued over so many zero bytes."""
    for at in range(0, length, len(ZEROS)):
        crc = isal_zlib.crc32(ZEROS[: length - at] if length - at < len(ZEROS) else ZEROS, crc)
    return crc
