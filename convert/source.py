"""Logical tensors out of stored pieces: pull a box, assemble a target, hash, and check on the way."""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import reduce
from math import prod

import torch

from mconv.convert.checkpoint import Checkpoint, primary
from mconv.convert.formats.tensors import bytes_of
from mconv.convert.table import Logical, Stored
from mconv.errors import FormatError
from mconv.shard.axes import Box, intersect, lengths, volume, within
from mconv.shard.cut import Block

HASH_BYTES = 32 << 20
"""How much of a logical tensor is gathered at once to be hashed or compared."""
Progress = Callable[[int], None]
"""Told how many bytes were dealt with since the last call."""


def quiet(_: int) -> None:
    """No progress."""


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
        return reduce(torch.promote_types, dtypes)

    def pull(self, logical: Logical, box: Box) -> torch.Tensor:
        """The box of a logical tensor, with one dimension for each elementary axis; a view where one piece holds it."""
        out = None
        for stored, block, both in self._overlaps(logical, box):
            view = self._view(stored, block)[within(both, block.box)]
            if both == box:
                return view.to(self.dtype(logical))
            out = torch.empty(lengths(box), dtype=self.dtype(logical)) if out is None else out
            out[within(both, box)] = view
        if out is None:
            raise FormatError(f"{self.checkpoint.path}: nothing stores {logical} at {box}")
        return out

    def _overlaps(self, logical: Logical, box: Box) -> Iterator[tuple[Stored, Block, Box]]:
        for stored in primary(self.groups[logical]):
            for block in stored.piece.blocks:
                if both := intersect(block.box, box):
                    yield stored, block, both

    def _view(self, stored: Stored, block: Block) -> torch.Tensor:
        whole = self.checkpoint.located[stored.key].load()
        return ordered(whole[tuple(slice(a, b) for a, b in block.at)], block).reshape(lengths(block.box))

    def slabs(self, logical: Logical) -> Iterator[torch.Tensor]:
        """The whole tensor in row-major order, in slabs of about `HASH_BYTES`."""
        dims = self.dims(logical)
        for box in slab_boxes(dims, HASH_BYTES // self.dtype(logical).itemsize):
            yield self.pull(logical, box)


def ordered(region: torch.Tensor, block: Block) -> torch.Tensor:
    """A view of a stored region in the order of the logical tensor; reading and writing go through it alike."""
    if block.order is None:
        return region
    return region.view(block.order.shape).permute(block.order.axes)


def slab_boxes(dims: tuple[int, ...], elements: int) -> Iterator[Box]:
    """Boxes of at most `elements` (or one innermost row) that follow each other in row-major order."""
    if prod(dims) <= elements or len(dims) == 1:
        yield tuple((0, n) for n in dims)
        return
    inner = prod(dims[1:])
    if inner > elements:
        for i in range(dims[0]):
            yield from (((i, i + 1), *box) for box in slab_boxes(dims[1:], elements))
        return
    step = elements // inner
    for i in range(0, dims[0], step):
        yield ((i, min(i + step, dims[0])), *((0, n) for n in dims[1:]))


def bits(tensor: torch.Tensor) -> torch.Tensor:
    """The same bytes as integers, so that equality is of bits (NaN equals NaN, 0.0 differs from -0.0)."""
    return tensor.contiguous().view({2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.dtype.itemsize])


def check_copies(source: Source) -> None:
    """Replicated tensors must be the same bits on every rank, else the checkpoint has more than one truth."""
    for logical, group in source.groups.items():
        first = {stored.piece.blocks: stored for stored in primary(group)}
        for stored in group:
            kept = first[stored.piece.blocks]
            for block in stored.piece.blocks if stored is not kept else ():
                one, two = source._view(stored, block), source._view(kept, block)
                if one.dtype != two.dtype or not torch.equal(bits(one), bits(two)):
                    raise FormatError(
                        f"{source.checkpoint.path}: {stored.key} and {kept.key} are copies of {logical} but differ; "
                        "the checkpoint is inconsistent"
                    )


def check_zero(source: Source, logical: Logical) -> None:
    """A tensor that the target cannot hold may only be left out if it is zero."""
    if any(slab.count_nonzero() for slab in source.slabs(logical)):
        raise FormatError(
            f"{source.checkpoint.path}: {logical} is not zero, but the target architecture has no place for it"
        )


def assemble(source: Source, stored: Stored, *, dtype: torch.dtype) -> torch.Tensor:
    """One target tensor: its blocks pulled from the source, padding and absent biases zero. A view where possible."""
    if stored.logical not in source.groups:
        return torch.zeros(stored.piece.shape, dtype=dtype)
    blocks = stored.piece.blocks
    if len(blocks) == 1 and prod(stored.piece.shape) == volume(blocks[0].box) and blocks[0].order is None:
        return source.pull(stored.logical, blocks[0].box).to(dtype).reshape(stored.piece.shape)
    out = torch.zeros(stored.piece.shape, dtype=dtype)
    flat = out.reshape(stored.piece.shape[-len(blocks[0].at) :]) if blocks else out
    for block in blocks:
        region = ordered(flat[tuple(slice(a, b) for a, b in block.at)], block)
        region.copy_(source.pull(stored.logical, block.box).reshape(region.shape))
    return out


def finite(tensor: torch.Tensor) -> bool:
    """Whether it holds neither NaN nor infinity: the extremes show either, thirty times faster than a test of each."""
    return tensor.numel() == 0 or all(bool(torch.isfinite(x)) for x in torch.aminmax(tensor))


@dataclass(frozen=True, slots=True)
class Digests:
    """sha256 of each logical tensor's bytes in row-major order: as stored, and as it is after the wanted cast."""

    stored: dict[str, str]
    cast: dict[str, str]


def digests(
    source: Source, *, dtype: torch.dtype | None = None, allow_nonfinite: bool = False, progress: Progress = quiet
) -> Digests:
    """Read every logical tensor of the architecture once, and hash it. NaN and infinity are refused on the way."""
    found = Digests({}, {})
    for logical in source.checkpoint.family.logicals(source.checkpoint.spec):
        plain, cast = hashlib.sha256(), hashlib.sha256()
        for slab in source.slabs(logical):
            plain.update(bytes_of(slab))
            wanted = slab if dtype is None else slab.to(dtype)
            if dtype is not None:
                cast.update(bytes_of(wanted))
            if not allow_nonfinite and not finite(wanted):
                raise FormatError(
                    f"{source.checkpoint.path}: {logical} holds NaN or infinity"
                    f"{f' as {dtype}' if dtype else ''}; give --allow-nonfinite to convert it all the same"
                )
            progress(slab.nbytes)
        found.stored[str(logical)] = plain.hexdigest()
        found.cast[str(logical)] = (cast if dtype is not None else plain).hexdigest()
    return found


def check_digests(source: Source, found: dict[str, str]) -> None:
    """Hold what was read against what was recorded when the checkpoint was made."""
    recorded = (source.checkpoint.manifest or {}).get("digests", {})
    changed = [name for name, value in found.items() if name in recorded and recorded[name] != value]
    if changed:
        raise FormatError(
            f"{source.checkpoint.path}: {len(changed)} tensors ({', '.join(changed[:5])}) changed since mconv "
            "made this checkpoint (digests in mconv.json); restore it, or remove mconv.json if the change was meant"
        )
