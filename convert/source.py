"""Logical tensors out of stored pieces: pull a box, assemble a target, and look at each slab once: hash, check."""

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from functools import reduce
from math import prod

import torch

from mconv.convert.checkpoint import Checkpoint, primary
from mconv.convert.digests import ALGORITHM, ALGORITHMS, Digests, recorded
from mconv.convert.formats.dtype import in_torch
from mconv.convert.formats.mapped import bytes_of
from mconv.convert.host import SLAB_BYTES
from mconv.convert.table import Logical, Stored
from mconv.errors import CopiesDiffer, FormatError
from mconv.shard.axes import Box, intersect, lengths, volume, within
from mconv.shard.cut import Block
from mconv.shard.patch import Patch, patch_of

Progress = Callable[[int], None]
"""Told how many bytes were dealt with since the last call."""


def quiet(_: int) -> None:
    """No progress."""


@dataclass(slots=True)
class Scratch:
    """Buffers of one worker, used again for every slab: fresh memory costs more than what is done with it."""

    buffers: dict[str, torch.Tensor] = field(default_factory=dict)

    def take(self, use: str, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        """An uninitialised contiguous tensor; valid until the next `take` for the same use."""
        nbytes = prod(shape) * dtype.itemsize
        if use not in self.buffers or self.buffers[use].numel() < nbytes:
            self.buffers[use] = torch.empty(nbytes, dtype=torch.uint8)
        return self.buffers[use][:nbytes].view(dtype).view(shape)

    def packed(self, use: str, tensor: torch.Tensor) -> torch.Tensor:
        """The tensor itself if it is contiguous, else a copy that is."""
        if tensor.is_contiguous():
            return tensor
        return self.take(use, tuple(tensor.shape), tensor.dtype).copy_(tensor)

    def cast(self, use: str, tensor: torch.Tensor, dtype: torch.dtype | None) -> torch.Tensor:
        """The tensor itself if it has the dtype, else a copy that has."""
        if dtype is None or tensor.dtype == dtype:
            return tensor
        return self.take(use, tuple(tensor.shape), dtype).copy_(tensor)


@dataclass(frozen=True, slots=True)
class Source:
    """Logical tensors by name and box, from whatever pieces the checkpoint stores."""

    checkpoint: Checkpoint
    groups: dict[Logical, list[Stored]]

    @classmethod
    def of(cls, checkpoint: Checkpoint) -> "Source":
        return cls(checkpoint, checkpoint.by_logical)

    def dims(self, logical: Logical) -> tuple[int, ...]:
        c = self.checkpoint
        return c.family.axes(logical).dims(c.spec.sizes)

    def dtype(self, logical: Logical) -> torch.dtype:
        """The dtype of all its pieces; where they differ, the smallest that holds them all."""
        dtypes = {self.checkpoint.located[s.key].dtype for s in self.groups[logical]}
        return reduce(torch.promote_types, map(in_torch, dtypes))

    def pull(self, logical: Logical, box: Box, scratch: Scratch | None = None) -> torch.Tensor:
        """The box of a logical tensor, with one dimension for each elementary axis; a view where one piece holds it."""
        found, adapter = self._stored(logical, box, scratch), self.checkpoint.adapter
        return found if adapter is None else adapter.merged(logical, box, found)

    def _stored(self, logical: Logical, box: Box, scratch: Scratch | None) -> torch.Tensor:
        out, dtype, filled = None, self.dtype(logical), 0
        for stored in primary(self.groups[logical]):
            for block in stored.piece.blocks:
                both = intersect(block.box, box)
                if both is None:
                    continue
                view = self.view(stored, block, both)
                if both == box:
                    return view.to(dtype)
                out = (scratch or Scratch()).take("pull", lengths(box), dtype) if out is None else out
                out[within(both, box)] = view
                filled += volume(both)
        if out is None or filled != volume(box):
            raise FormatError(f"{self.checkpoint.path}: nothing stores all of {logical} at {box}")
        return out

    def view(self, stored: Stored, block: Block, box: Box) -> torch.Tensor:
        """A part of what a block of a stored tensor holds, in the order of the logical tensor."""
        flat = self.checkpoint.located[stored.key].load().view(-1)
        patch = patch_of(stored.piece.shape, block)
        wide = patch.widened(box)
        found = seen(flat, patch, wide)
        return found if wide == box else found[within(box, wide)]

    def split(self, logical: Logical) -> int:
        """The first axis that some piece stores as several dimensions, so that no slab should cut it."""
        pieces = [(s.piece.shape, block) for s in self.groups[logical] for block in s.piece.blocks]
        return min(patch_of(shape, block).split for shape, block in pieces)

    def slabs(self, logical: Logical, scratch: Scratch | None = None, *, keep: int | None = None) -> Iterator["Slab"]:
        """The whole tensor in row-major order, contiguous slab by slab. A slab is overwritten by the next."""
        scratch = scratch or Scratch()
        keep = self.split(logical) if keep is None else keep
        for box in slab_boxes(self.dims(logical), SLAB_BYTES // self.dtype(logical).itemsize, keep=keep):
            yield Slab(box, scratch.packed("slab", self.pull(logical, box, scratch)))


@dataclass(frozen=True, slots=True)
class Slab:
    """A box of a logical tensor and its elements, row-major."""

    box: Box
    tensor: torch.Tensor


def seen(flat: torch.Tensor, patch: Patch, box: Box) -> torch.Tensor:
    """The part of a flat stored tensor that holds a box, one dimension for each elementary axis; a view if possible."""
    offset, dims = patch.cut(box)
    sizes, steps = [n for n, _ in dims], [step for _, step in dims]
    return flat.as_strided(sizes, steps, flat.storage_offset() + offset).reshape(lengths(box))


def slab_boxes(dims: tuple[int, ...], elements: int, *, keep: int | None = None) -> Iterator[Box]:
    """Boxes of at most `elements` that follow each other in row-major order.

    A box is larger if one innermost row is, or where axes from number `keep` on, which are never cut, make it so.
    """
    keep = len(dims) - 1 if keep is None else min(keep, len(dims) - 1)
    if prod(dims) <= elements or (keep <= 0 and len(dims) > 1) or prod(dims) == 0:
        yield tuple((0, n) for n in dims)
        return
    inner = prod(dims[1:])
    if inner > elements and len(dims) > 1:
        for i in range(dims[0]):
            yield from (((i, i + 1), *box) for box in slab_boxes(dims[1:], elements, keep=keep - 1))
        return
    step = max(1, elements // inner)
    for i in range(0, dims[0], step):
        yield ((i, min(i + step, dims[0])), *((0, n) for n in dims[1:]))


def bits(tensor: torch.Tensor) -> torch.Tensor:
    """The same bytes as integers, so that equality is of bits (NaN equals NaN, 0.0 differs from -0.0)."""
    return tensor.contiguous().view({2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.dtype.itemsize])


def check_copies(source: Source) -> None:
    """Replicated tensors must be the same bits on every rank, else the checkpoint has more than one truth."""
    for logical, group in source.groups.items():
        if len(primary(group)) != len(group):
            for slab in source.slabs(logical):
                check_copies_of(source, logical, slab)


def check_copies_of(source: Source, logical: Logical, slab: Slab) -> None:
    """Raise CopiesDiffer, with the files' and tensor's names, where copies of one slab of a tensor differ."""
    for stored, kept in differing_copies(source, logical, slab):
        way = "the checkpoint is inconsistent"
        if source.checkpoint.format == "hf":  # a tied head: the only copy that a folder of transformers holds
            way = (
                "config.json ties the two, and transformers does not tie what differs. To keep both, say there "
                '"tie_word_embeddings": false'
            )
        raise CopiesDiffer(
            f"{source.checkpoint.path}: {stored.key} and {kept.key} are copies of {logical} but differ; {way}"
        )


def differing_copies(source: Source, logical: Logical, slab: Slab) -> Iterator[tuple[Stored, Stored]]:
    """Return each stored copy that differs within a slab of a tensor, and the copy that stands for all."""
    group = source.groups[logical]
    first = {stored.piece.blocks: stored for stored in primary(group)}
    for stored in group:
        kept = first[stored.piece.blocks]
        for block in stored.piece.blocks if stored is not kept else ():
            both = intersect(block.box, slab.box)
            if both and not _same_bits(source.view(stored, block, both), source.view(kept, block, both)):
                yield stored, kept


def _same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.dtype == b.dtype and torch.equal(bits(a), bits(b))


def check_zero(source: Source, logical: Logical, slab: Slab) -> None:
    """A tensor that the target cannot hold may only be left out if it is zero."""
    if slab.tensor.count_nonzero():
        raise FormatError(
            f"{source.checkpoint.path}: {logical} is not zero, but the target architecture has no place for it"
        )


def check_finite(source: Source, logical: Logical, tensor: torch.Tensor, *, cast: torch.dtype | None) -> None:
    if not finite(tensor):
        raise FormatError(
            f"{source.checkpoint.path}: {logical} holds NaN or infinity"
            f"{f' as {cast}' if cast else ''}; give --allow-nonfinite to convert it all the same"
        )


def finite(tensor: torch.Tensor) -> bool:
    """Whether it holds neither NaN nor infinity: the extremes show either, thirty times faster than a test of each."""
    return tensor.numel() == 0 or all(bool(torch.isfinite(x)) for x in torch.aminmax(tensor))


def assemble(source: Source, stored: Stored, *, dtype: torch.dtype) -> torch.Tensor:
    """One target tensor: its blocks pulled from the source, padding and absent biases zero. A view where possible."""
    if stored.logical not in source.groups:
        return torch.zeros(stored.piece.shape, dtype=dtype)
    blocks = stored.piece.blocks
    if len(blocks) == 1 and prod(stored.piece.shape) == volume(blocks[0].box) and blocks[0].order is None:
        return source.pull(stored.logical, blocks[0].box).to(dtype).reshape(stored.piece.shape)
    out = torch.zeros(stored.piece.shape, dtype=dtype)
    for block in blocks:
        offset, dims = patch_of(stored.piece.shape, block).cut(block.box)
        region = out.view(-1).as_strided([n for n, _ in dims], [step for _, step in dims], offset)
        region.copy_(source.pull(stored.logical, block.box).reshape(region.shape))
    return out


def digests(
    source: Source, *, dtype: torch.dtype | None = None, allow_nonfinite: bool = False,
    algorithm: str = ALGORITHM, progress: Progress = quiet, only: Collection[str] | None = None,
) -> Digests:  # fmt: skip
    """Read every logical tensor of the architecture (or `only` these) once, and hash it. NaN and infinity are refused."""
    found, scratch = Digests({}, {}), Scratch()
    for logical in source.checkpoint.family.logicals(source.checkpoint.spec):
        if only is not None and str(logical) not in only:
            continue
        plain, cast = ALGORITHMS[algorithm](), ALGORITHMS[algorithm]()
        for slab in source.slabs(logical, scratch):
            plain.update(bytes_of(slab.tensor))
            wanted = scratch.cast("cast", slab.tensor, dtype)
            if dtype is not None:
                cast.update(bytes_of(wanted))
            if not allow_nonfinite:
                check_finite(source, logical, wanted, cast=dtype)
            progress(slab.tensor.nbytes)
        found.stored[str(logical)] = plain.hexdigest()
        found.cast[str(logical)] = (cast if dtype is not None else plain).hexdigest()
    return found


__all__ = ["Source", "assemble", "digests", "recorded"]
