"""Read a source: slab by slab, hashed, or assembled into the tensor that a target stores."""

from collections.abc import Callable, Collection, Iterator
from math import prod

import torch

from mconv.convert.folders.digests import ALGORITHM, ALGORITHMS, Digests
from mconv.convert.folders.host import SLAB_BYTES
from mconv.convert.formats.mapped import bytes_of
from mconv.convert.sources.checks import check_copies_of, check_finite
from mconv.convert.sources.scratch import Scratch
from mconv.convert.sources.source import Slab, Source, dims_of, dtype_of, slab_boxes, split_of
from mconv.convert.sources.stored import primary
from mconv.convert.spelling.table import Logical, Stored
from mconv.shard.axes import volume
from mconv.shard.patch import patch_of

Progress = Callable[[int], None]
"""A callback that receives the number of bytes that were processed since the last call."""


def quiet(_: int) -> None:
    """No progress."""


def slabs(source: Source, tensor: Logical, scratch: Scratch | None = None, *, keep: int | None = None) -> Iterator[Slab]:
    """Yield a whole tensor in row-major order, contiguous slab by slab. A slab is overwritten by the next."""
    scratch = scratch or Scratch()
    keep = split_of(source, tensor) if keep is None else keep
    for box in slab_boxes(dims_of(source, tensor), SLAB_BYTES // dtype_of(source, tensor).itemsize, keep=keep):
        yield Slab(box, scratch.packed("slab", source.pull(tensor, box, scratch)))


def check_copies(source: Source) -> None:
    """Raise CopiesDiffer unless replicated tensors are the same bits everywhere: a checkpoint has one truth."""
    for tensor in source.tensors():
        if len(primary(source.pieces(tensor))) != len(source.pieces(tensor)):
            for slab in slabs(source, tensor):
                check_copies_of(source, tensor, slab)


def assemble(source: Source, stored: Stored, *, dtype: torch.dtype) -> torch.Tensor:
    """Return a target tensor, its blocks pulled from the source; what it lacks is zero. A view if possible."""
    if stored.logical not in source.tensors():
        return torch.zeros(stored.piece.shape, dtype=dtype)
    blocks = stored.piece.blocks
    if len(blocks) == 1 and prod(stored.piece.shape) == volume(blocks[0].box) and blocks[0].order is None:
        return source.pull(stored.logical, blocks[0].box).to(dtype).reshape(stored.piece.shape)
    out = torch.zeros(stored.piece.shape, dtype=dtype)
    for block in blocks:
        offset, strides = patch_of(stored.piece.shape, block).cut(block.box)
        region = out.view(-1).as_strided([n for n, _ in strides], [step for _, step in strides], offset)
        region.copy_(source.pull(stored.logical, block.box).reshape(region.shape))
    return out


def digests(
    source: Source, *, dtype: torch.dtype | None = None, allow_nonfinite: bool = False,
    algorithm: str = ALGORITHM, progress: Progress = quiet, only: Collection[str] | None = None,
) -> Digests:  # fmt: skip
    """Read every logical tensor of the architecture (or `only` these) once, and hash it. NaN and infinity are refused."""
    found, scratch = Digests({}, {}), Scratch()
    for tensor in source.family.logicals(source.spec):
        if only is not None and str(tensor) not in only:
            continue
        plain, cast = ALGORITHMS[algorithm](), ALGORITHMS[algorithm]()
        for slab in slabs(source, tensor, scratch):
            plain.update(bytes_of(slab.tensor))
            wanted = scratch.cast("cast", slab.tensor, dtype)
            if dtype is not None:
                cast.update(bytes_of(wanted))
            if not allow_nonfinite:
                check_finite(source, tensor, wanted, cast=dtype)
            progress(slab.tensor.nbytes)
        found.stored[str(tensor)] = plain.hexdigest()
        found.cast[str(tensor)] = (cast if dtype is not None else plain).hexdigest()
    return found
