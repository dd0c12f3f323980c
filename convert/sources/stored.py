"""Logical tensors out of the pieces that a checkpoint stores."""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mconv.convert.formats.dtype import DType
from mconv.convert.formats.tensors import Located
from mconv.convert.sources.source import Slab, dtype_of
from mconv.convert.spelling.table import Family, Logical, Stored
from mconv.errors import FormatError
from mconv.shard.axes import Box, intersect, lengths, volume, within
from mconv.shard.cut import Block
from mconv.shard.patch import Patch, patch_of
from mconv.spec import ModelSpec

if TYPE_CHECKING:
    import torch

    from mconv.convert.sources.scratch import Scratch


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredSource:
    """Stored tensors, each a piece of a logical tensor, and where their bytes lie."""

    label: str
    family: Family
    spec: ModelSpec
    stored: Sequence[Stored]
    located: Mapping[str, Located]
    """The place of each stored tensor's bytes, by its key."""
    groups: Mapping[Logical, list[Stored]] = field(init=False)
    """The stored tensors of each logical tensor."""

    def __post_init__(self) -> None:
        found: dict[Logical, list[Stored]] = {}
        for stored in self.stored:
            found.setdefault(stored.logical, []).append(stored)
        object.__setattr__(self, "groups", found)

    def tensors(self) -> Collection[Logical]:
        return self.groups.keys()

    def dtypes(self, tensor: Logical) -> Collection[DType]:
        return {self.located[stored.key].dtype for stored in self.groups[tensor]}

    def pieces(self, tensor: Logical) -> Sequence[Stored]:
        return self.groups[tensor]

    def pull(self, tensor: Logical, box: Box, scratch: "Scratch | None" = None) -> "torch.Tensor":
        """Return a box of a tensor, a view where one piece holds it. Raises FormatError where none hold all of it."""
        out, dtype, filled = None, dtype_of(self, tensor), 0
        for stored in primary(self.groups[tensor]):
            for block in stored.piece.blocks:
                both = intersect(block.box, box)
                if both is None:
                    continue
                view = self.view(stored, block, both)
                if both == box:
                    return view.to(dtype)
                out = _buffer(scratch, lengths(box), dtype) if out is None else out
                out[within(both, box)] = view
                filled += volume(both)
        if out is None or filled != volume(box):
            raise FormatError(f"{self.label}: nothing stores all of {tensor} at {box}")
        return out

    def view(self, stored: Stored, block: Block, box: Box) -> "torch.Tensor":
        """Return a part of what a block of a stored tensor holds, in the order of the logical tensor."""
        flat = self.located[stored.key].load().view(-1)
        patch = patch_of(stored.piece.shape, block)
        wide = patch.widened(box)
        found = seen(flat, patch, wide)
        return found if wide == box else found[within(box, wide)]

    def conflicts(self, tensor: Logical, slab: Slab) -> Iterator[tuple[Stored, Stored]]:
        """Yield each stored copy that differs within a slab, and the copy that stands for all."""
        group = self.groups[tensor]
        first = {stored.piece.blocks: stored for stored in primary(group)}
        for stored in group if len(first) != len(group) else ():
            kept = first[stored.piece.blocks]
            for block in stored.piece.blocks if stored is not kept else ():
                both = intersect(block.box, slab.box)
                if both and self._differ(stored, kept, block, both):
                    yield stored, kept

    def _differ(self, stored: Stored, kept: Stored, block: Block, box: Box) -> bool:
        from mconv.convert.sources.checks import same_bits

        return not same_bits(self.view(stored, block, box), self.view(kept, block, box))

    def files(self) -> Collection[Path]:
        return {where.path for where in self.located.values()}

    def fingerprint(self) -> list[Any]:
        """Return the key, file, offset, dtype and shape of every stored tensor."""
        return sorted(
            (key, f"{where.path.parent.name}/{where.path.name}", where.offset, str(where.dtype), where.shape)
            for key, where in self.located.items()
        )


def primary(group: Iterable[Stored]) -> list[Stored]:
    """Return one stored tensor for each piece; the others are copies of it (replicated norms, a tied head)."""
    return list({stored.piece.blocks: stored for stored in reversed(list(group))}.values())[::-1]


def seen(flat: "torch.Tensor", patch: Patch, box: Box) -> "torch.Tensor":
    """Return the part of a flat stored tensor that holds a box, a dimension for each axis; a view if possible."""
    offset, dims = patch.cut(box)
    sizes, steps = [n for n, _ in dims], [step for _, step in dims]
    return flat.as_strided(sizes, steps, flat.storage_offset() + offset).reshape(lengths(box))


def _buffer(scratch: "Scratch | None", shape: tuple[int, ...], dtype: "torch.dtype") -> "torch.Tensor":
    from mconv.convert.sources.scratch import Scratch

    return (scratch or Scratch()).take("pull", shape, dtype)
