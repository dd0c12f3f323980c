"""A blend as a source: logical tensors that are merged as they are pulled, each from its Hugging Face tensors.

Statistics are of a Hugging Face tensor (q, k and v apart; gate and up apart), whatever fuses them in the models that are
read or in what is written.
"""

import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mconv.convert.blend.count import Count
from mconv.convert.blend.document import Reference
from mconv.convert.blend.lineup import Lineup
from mconv.convert.blend.recipe import Recipe
from mconv.convert.blend.tensors import Merged, tensors_of
from mconv.convert.folders.digests import ALGORITHM, ALGORITHMS
from mconv.convert.formats.dtype import BY_NAME, DType, of_torch
from mconv.convert.sources.source import Slab as Pulled
from mconv.convert.sources.source import Source, dims_of, dtype_of
from mconv.convert.sources.unfused import Unfused, start_of
from mconv.convert.spelling.table import Family, Logical, Stored
from mconv.errors import FormatError
from mconv.shard.axes import Box, intersect, lengths, volume, whole, within
from mconv.spec import ModelSpec

if TYPE_CHECKING:
    import torch

    from mconv.convert.blend.slabs import Kernel, Merge, Slab
    from mconv.convert.sources.scratch import Scratch

RUN = 1 << 16
"""Elements that are merged at once, or a row if that is longer: with all that is made of them they fit the processor's
cache. Another number changes no bit of the result."""
PULLED = 16
"""Runs that are read at once where a pass takes statistics."""
HELD = 3
"""Runs of one model that are in hand at once: as it is read, as a difference, and masked or weighted."""


class Lane(threading.local):
    """State of one thread while it goes through one logical tensor."""

    def __init__(self) -> None:
        self.logical: Logical | None = None
        self.kernels: dict[str, Kernel] = {}
        self.whole: dict[str, torch.Tensor] = {}
        """Merged tensors that are asked for in another order than their own."""
        self.hashes: list[Any] = []
        self.position = 0
        """Elements of the logical tensor that were hashed, from its first on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Blend:
    """The tensors that a recipe makes of those of several models."""

    recipe: Recipe
    lineup: Lineup
    sources: Mapping[Reference, Source]
    family: Family
    spec: ModelSpec
    seed: int = 0
    out_dtype: str | None = None
    """Element type of the result, where it is neither the recipe's nor the models'."""
    made_of: list[Any] = field(default_factory=list)
    """JSON values that say the recipe, for `fingerprint`."""
    unchanged: Callable[[Reference], None] = lambda _: None
    """Raises if a model's files are others than when it was opened."""
    tensors_of: Mapping[Logical, tuple[Merged, ...]] = field(init=False)
    """The Hugging Face tensors of each logical tensor."""
    read: dict[tuple[Reference, Logical], str] = field(default_factory=dict, init=False)
    """Digests of what was read to its end."""
    listeners: list[Callable[[int], None]] = field(default_factory=list, init=False, repr=False, compare=False)
    lane: Lane = field(default_factory=Lane, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "tensors_of", tensors_of(self.recipe, self.lineup, self.family, self.spec))

    # ---- what it is --------------------------------------------------------------------------------------------------
    @property
    def label(self) -> str:
        return f"the blend of {', '.join(map(str, self.sources))}"

    def tensors(self) -> Collection[Logical]:
        return self.tensors_of.keys()

    def dtypes(self, tensor: Logical) -> Collection[DType]:
        named = self.out_dtype or self.recipe.out_dtype or self.recipe.dtype
        return {BY_NAME[named] if named else self._narrowest(tensor)}

    def _narrowest(self, tensor: Logical) -> DType:
        """Return the narrowest type that holds a tensor of every model."""
        inputs = self._inputs(tensor)
        kinds = {kind for source, logical in inputs for kind in source.dtypes(logical)}
        if len(kinds) == 1:
            return kinds.pop()
        from mconv.convert.blend.arithmetic import working_dtype

        return of_torch(working_dtype(None, [dtype_of(*one) for one in inputs]))

    def pieces(self, tensor: Logical) -> Sequence[Stored]:
        source, logical = self._inputs(tensor)[0]
        return source.pieces(logical)

    def conflicts(self, tensor: Logical, slab: Pulled) -> Iterable[tuple[Stored, Stored]]:
        """Raise CopiesDiffer where copies of one model's tensor differ: a blend has none itself."""
        from mconv.convert.sources.checks import check_copies_of

        for source, logical in self._inputs(tensor):
            check_copies_of(source, logical, slab)
        return ()

    def files(self) -> Collection[Path]:
        return {path for source in self.sources.values() for path in source.files()}

    def fingerprint(self) -> list[Any]:
        own = [self.made_of, self.seed, self.out_dtype]
        return [*own, *([str(name), source.fingerprint()] for name, source in self.sources.items())]

    def _inputs(self, tensor: Logical) -> list[tuple[Source, Logical]]:
        return [(self.sources[name], logical) for name, logical in self.tensors_of[tensor][0].inputs]

    @property
    def working_bytes(self) -> int:
        """Bytes that a worker holds beside a slab: runs of each model in fp64, and a tensor that is merged whole."""
        every = [merged for group in self.tensors_of.values() for merged in group]
        models = max(len(merged.inputs) for merged in every)
        whole = (one.member.elements for one in every if list(one.member.order) != sorted(one.member.order))
        return 8 * HELD * RUN * models + 4 * max(whole, default=0)

    # ---- merging -----------------------------------------------------------------------------------------------------
    def pull(self, tensor: Logical, box: Box, scratch: "Scratch | None" = None) -> "torch.Tensor":
        """Return a box of a merged tensor. What a thread pulls of one tensor box by box takes its statistics once."""
        import torch

        from mconv.convert.sources.scratch import Scratch

        lane, scratch = self._begin(tensor), scratch or Scratch()
        parts = [(one, both) for one in self.tensors_of[tensor] if (both := intersect(one.member.box, box)) is not None]
        for merged, _ in parts:  # before the box is pulled: passes over the models need the same buffers
            self._prepare(lane, merged, scratch)
        inputs = [source.pull(logical, box, scratch.apart(f"model {at}"))
                  for at, (source, logical) in enumerate(self._inputs(tensor))]  # fmt: skip
        self._hash(tensor, box, inputs)
        (kind,) = self.dtypes(tensor)
        out = scratch.take("blend", lengths(box), getattr(torch, kind.name))
        for merged, both in parts:
            at = within(both, box)
            self._fill(out[at], lane, merged, both, [values[at] for values in inputs], scratch.apart("merge"))
        return out

    def _begin(self, tensor: Logical) -> Lane:
        lane = self.lane
        if lane.logical != tensor:
            lane.logical, lane.kernels, lane.whole, lane.hashes, lane.position = tensor, {}, {}, [], 0
            self._check_unchanged(tensor)
        return lane

    def _check_unchanged(self, tensor: Logical) -> None:
        for name, _ in self.tensors_of[tensor][0].inputs:
            self.unchanged(name)

    def _prepare(self, lane: Lane, merged: Merged, scratch: "Scratch") -> None:
        """Take the statistics of a Hugging Face tensor, where that was not done."""
        if (name := merged.member.key) not in lane.kernels:
            lane.kernels[name] = self.kernel(merged, scratch)
            self._check_unchanged(merged.member.logical)

    def _fill(
        self, out: "torch.Tensor", lane: Lane, merged: Merged, box: Box, inputs: "list[torch.Tensor]", scratch: "Scratch"
    ) -> None:
        """Fill a box that lies in one Hugging Face tensor."""
        from mconv.convert.blend.slabs import Slab

        member, name = merged.member, merged.member.key
        start, row = member.start_of(box), member.shape[-1]
        if start is None or start % row or volume(box) % row:  # Hugging Face has it in another order (GPT-2)
            if name not in lane.whole:
                lane.whole[name] = member.as_box(self._whole(lane.kernels[name], merged), member.box)
            out.copy_(lane.whole[name][within(box, member.box)])
            return
        flat = [scratch.packed(f"flat {at}", x.permute(member.order)).view(-1) for at, x in enumerate(inputs)]
        ordered = out.permute(member.order)
        to = ordered.view(-1) if ordered.is_contiguous() else scratch.take("runs", (volume(box),), out.dtype)
        _in_runs(to, lane.kernels[name], Slab(start, tuple(flat), scratch), row)
        if not ordered.is_contiguous():
            out.copy_(member.as_box(to, box))

    def _whole(self, kernel: "Kernel", merged: Merged) -> "torch.Tensor":
        import torch

        out = torch.empty(merged.member.elements, dtype=self.merge(merged).dtype)
        for slab in self.slabs(merged):
            out[slab.start : slab.start + len(slab.tensors[0])] = kernel(slab)
        return out

    def kernel(self, merged: Merged, scratch: "Scratch | None" = None) -> "Kernel":
        """Return the function that merges any run of whole rows of a tensor, its statistics taken."""
        from mconv.convert.blend.arithmetic import kernel

        (kind,) = self.dtypes(merged.member.logical)
        count = Count(merged.member.elements, float(merged.member.elements * kind.itemsize), self._tell)
        made = kernel(self.recipe.method.name, self.merge(merged), lambda: count.told(self.slabs(merged, scratch)))
        count.finish()
        return made

    def listen(self, progress: Callable[[int], None]) -> None:
        """Tell `progress` of the bytes of each tensor while its statistics are taken."""
        self.listeners[:] = [progress]

    def _tell(self, count: int) -> None:
        for progress in self.listeners:
            progress(count)

    def merge(self, merged: Merged) -> "Merge":
        """Return what a tensor is merged by."""
        import torch

        from mconv.convert.blend.arithmetic import working_dtype
        from mconv.convert.blend.slabs import Merge

        kinds = [dtype_of(self.sources[name], logical) for name, logical in merged.inputs]
        kinds += [getattr(torch, self.out_dtype)] if self.out_dtype else []
        bound, member = merged.bound, merged.member
        return Merge(
            name=member.key, shape=member.shape, dtype=working_dtype(self.recipe.dtype, kinds), shared=bound.shared,
            inputs=bound.inputs, base=bound.base, seed=self.seed,
        )  # fmt: skip

    def slabs(self, merged: Merged, scratch: "Scratch | None" = None) -> Iterator["Slab"]:
        """Yield a tensor of every model in runs of whole rows, each of which may overwrite the one before."""
        from mconv.convert.blend.slabs import Slab
        from mconv.convert.sources.scratch import Scratch

        member, scratch = merged.member, scratch or Scratch()
        run = run_of(member.shape[-1])
        for start in range(0, member.elements, PULLED * run):
            stop = min(start + PULLED * run, member.elements)
            each = enumerate(merged.inputs)
            flat = (self._flat(member, *one, start, stop, scratch.apart(f"model {at}")) for at, one in each)
            yield from Slab(start, tuple(flat), scratch.apart("merge")).runs(run)

    def _flat(
        self, member: Unfused, model: Reference, logical: Logical, start: int, stop: int, scratch: "Scratch"
    ) -> "torch.Tensor":
        """Return a run of a model's tensor."""
        source, boxes = self.sources[model], list(member.boxes(start, stop))
        if len(boxes) == 1:
            return member.flat(source.pull(logical, boxes[0], scratch))
        out, at = scratch.take("flat", (stop - start,), dtype_of(source, logical)), 0
        for box in boxes:
            out[at : at + volume(box)] = member.flat(source.pull(logical, box, scratch))
            at += volume(box)
        return out

    # ---- what was read -----------------------------------------------------------------------------------------------
    def _hash(self, tensor: Logical, box: Box, inputs: list["torch.Tensor"]) -> None:
        """Go on with the digests of the models' tensors, if a box follows the one before."""
        from mconv.convert.formats.mapped import bytes_of

        lane, dims = self.lane, dims_of(self, tensor)
        start = start_of(box, whole(dims), range(len(dims)))
        if start == 0:
            lane.hashes, lane.position = [ALGORITHMS[ALGORITHM]() for _ in inputs], 0
        if start != lane.position or not lane.hashes:
            return
        for digest, values in zip(lane.hashes, inputs, strict=True):
            digest.update(bytes_of(values.contiguous()))
        lane.position += volume(box)
        if lane.position == prod(dims):
            self._check_unchanged(tensor)
            for key, digest in zip(self.tensors_of[tensor][0].inputs, lane.hashes, strict=True):
                self._note(key, digest.hexdigest())

    def _note(self, key: tuple[Reference, Logical], digest: str) -> None:
        if self.read.setdefault(key, digest) != digest:
            raise FormatError(f"{key[0]}: {key[1]} has changed while it was read; nothing was kept: start again")


def run_of(row: int) -> int:
    """Return the number of elements that are merged at once, in whole rows."""
    return max(1, RUN // row) * row


def _in_runs(out: "torch.Tensor", kernel: "Kernel", slab: "Slab", row: int) -> None:
    """Merge a slab in runs of whole rows."""
    at = 0
    for run in slab.runs(run_of(row)):
        size = len(run.tensors[0])
        out[at : at + size] = kernel(run)
        at += size
