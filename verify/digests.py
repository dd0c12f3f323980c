"""Two checkpoints of any spelling, tensor by tensor: do they hold the same bits? Nothing is computed from the weights.

Both are read once, slab by slab, straight from what lies on disk; what a manifest says of a checkpoint is held against
its bytes on the way, never believed.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from math import prod
from typing import Any

import torch

from mconv.convert.checkpoint import Checkpoint
from mconv.convert.digests import ALGORITHMS, Recorded, recorded
from mconv.convert.formats.tensors import bytes_of
from mconv.convert.source import SLAB_BYTES, Progress, Scratch, Slab, Source, bits, check_copies_of, quiet, slab_boxes
from mconv.convert.table import Logical
from mconv.shard.axes import Axes, Box
from mconv.spec import ModelSpec

TOLD_BY_TENSORS = ("family", "qkv_bias", "proj_bias", "mlp_bias")
"""Fields of the spec that decide nothing beyond which tensors there are, and the name of a family."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """One logical tensor that is not the same in both."""

    tensor: str
    how: str
    """`missing`, `shape`, `dtype` or `bits`."""
    a: str
    b: str
    """What each side has: a shape by named axes, a dtype, the value where they are furthest apart."""
    elements: int = 0
    """Elements that differ (`bits`: in any bit; `dtype`: in value)."""
    of: int = 0
    largest: float | None = None
    """The largest difference of two finite values."""
    at: dict[str, int] = field(default_factory=dict)
    """Where that is, by axis."""
    nonfinite: int = 0
    """Differing elements of which one is NaN or infinite."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What differs. `same` is the answer."""

    a: str
    b: str
    tensors: int
    """Logical tensors that both have."""
    nbytes: int
    """Bytes of the first that were compared."""
    spec: dict[str, tuple[Any, Any]]
    """What is no tensor and differs: norm epsilon, rope, window, vocabulary, sizes."""
    differences: tuple[Difference, ...]
    zero_biases: tuple[str, ...]
    """Biases that only one side stores, and there they are zero: the same function."""
    stale: dict[str, tuple[str, ...]]
    """By side, tensors whose bytes are not those that its own manifest recorded."""

    @property
    def same(self) -> bool:
        return not self.spec and not self.differences

    def to_dict(self) -> dict[str, Any]:
        return {"same": self.same, **asdict(self)}


@dataclass(frozen=True, slots=True)
class _Side:
    """One checkpoint being read: each tensor is hashed on the way where its manifest says what the hash should be."""

    source: Source
    recorded: Recorded
    stale: list[str]
    scratch: Scratch

    @classmethod
    def of(cls, checkpoint: Checkpoint) -> "_Side":
        return cls(Source.of(checkpoint), recorded(checkpoint), [], Scratch())

    def slabs(self, logical: Logical, boxes: list[Box]) -> Iterator[torch.Tensor]:
        """Slab after slab, contiguous; each is overwritten by the next. Copies of it elsewhere must be the same."""
        want = self.recorded.digests.get(str(logical))
        digest = ALGORITHMS[self.recorded.algorithm]()
        for box in boxes:
            slab = self.scratch.packed("slab", self.source.pull(logical, box, self.scratch))
            check_copies_of(self.source, logical, Slab(box, slab))
            if want is not None:
                digest.update(bytes_of(slab))
            yield slab
        if want is not None and digest.hexdigest() != want:
            self.stale.append(str(logical))

    def axes(self, logical: Logical) -> Axes:
        return self.source.checkpoint.family.axes(logical)

    def shape(self, logical: Logical) -> str:
        """`(g 4, s 4, h 6) x d 48`."""
        sizes = dict(zip(self.axes(logical).names, self.source.dims(logical), strict=True))
        groups = [", ".join(f"{name} {sizes[name]}" for name in group) for group in self.axes(logical).groups]
        return " x ".join(f"({text})" if ", " in text else text for text in groups)


def compare(a: Checkpoint, b: Checkpoint, *, progress: Progress = quiet) -> Report:
    """Compare every logical tensor of two checkpoints, and what their architectures say beyond tensors.

    Raises FormatError where a checkpoint contradicts itself: copies of one tensor that differ. `progress` is told the
    bytes read of both.
    """
    left, right = _Side.of(a), _Side.of(b)
    differences, zero, both, nbytes = [], [], 0, 0
    for logical in _all(a, b):
        if logical in a.by_logical and logical in b.by_logical:
            found = _compare(left, right, logical, progress)
            both += 1
            nbytes += prod(left.source.dims(logical)) * left.source.dtype(logical).itemsize
            differences += [] if found is None else [found]
        elif _zero_bias(left if logical in a.by_logical else right, logical, progress):
            zero.append(str(logical))
        else:
            stored = ["stored" if logical in c.by_logical else "missing" for c in (a, b)]
            differences.append(Difference(tensor=str(logical), how="missing", a=stored[0], b=stored[1]))
    return Report(
        a=describe(a), b=describe(b), tensors=both, nbytes=nbytes, spec=spec_differences(a.spec, b.spec),
        differences=tuple(differences), zero_biases=tuple(zero),
        stale={name: tuple(side.stale) for name, side in (("a", left), ("b", right))},
    )  # fmt: skip


def nbytes(c: Checkpoint) -> int:
    """Bytes of its logical tensors: what a comparison reads of it."""
    source = Source.of(c)
    return sum(prod(source.dims(x)) * source.dtype(x).itemsize for x in c.by_logical)


def describe(c: Checkpoint) -> str:
    """Name, format, dialect and layout in a few words."""
    layout = f", tp {c.layout.tp} x pp {c.layout.pp}" if c.layout else ""
    return f"{c.name} ({c.format}{f', {c.dialect}' if c.dialect else ''}{layout})"


def spec_differences(a: ModelSpec, b: ModelSpec) -> dict[str, tuple[Any, Any]]:
    """The fields that two specs say otherwise, rope's among them. A family's name alone changes nothing."""
    flat = [_flat(spec) for spec in (a, b)]
    return {name: (flat[0].get(name), flat[1].get(name)) for name in flat[0] if flat[0].get(name) != flat[1].get(name)}


def _flat(spec: ModelSpec) -> dict[str, Any]:
    values = {name: value for name, value in spec.to_dict().items() if name not in TOLD_BY_TENSORS}
    rope = values.pop("rope")
    return values | {f"rope.{name}": value for name, value in rope.items() if spec.position == "rope"}


def _all(a: Checkpoint, b: Checkpoint) -> list[Logical]:
    """The tensors of both in the order of the forward pass, those of the second alone last."""
    first = [x for x in a.family.logicals(a.stored_spec) if x in a.by_logical]
    return first + [x for x in b.family.logicals(b.stored_spec) if x in b.by_logical and x not in a.by_logical]


def _boxes(logical: Logical, *sides: _Side) -> list[Box]:
    """Slabs that suit how each side stores the tensor."""
    width = max(side.source.dtype(logical).itemsize for side in sides)
    keep = min(side.source.split(logical) for side in sides)
    return list(slab_boxes(sides[0].source.dims(logical), SLAB_BYTES // width, keep=keep))


def _read(side: _Side, logical: Logical, progress: Progress) -> bool:
    """Read a tensor that has nothing to be compared with, for its digest; whether it is zero."""
    zero = True
    for slab in side.slabs(logical, _boxes(logical, side)):
        zero = zero and not slab.count_nonzero()
        progress(slab.nbytes)
    return zero


def _zero_bias(side: _Side, logical: Logical, progress: Progress) -> bool:
    """megatron-core has biases on all linears or none, so it may hold some that are zero: no difference."""
    return _read(side, logical, progress) and logical.leaf == "bias" and not logical.row.endswith("norm")


def _compare(left: _Side, right: _Side, logical: Logical, progress: Progress) -> Difference | None:
    name, axes = str(logical), left.axes(logical)
    shapes = left.shape(logical), right.shape(logical)
    if shapes[0] != shapes[1]:
        for side in (left, right):
            _read(side, logical, progress)
        return Difference(tensor=name, how="shape", a=shapes[0], b=shapes[1])
    dims, dtypes = left.source.dims(logical), (left.source.dtype(logical), right.source.dtype(logical))
    boxes, found = _boxes(logical, left, right), _Found()
    for box, one, two in zip(boxes, left.slabs(logical, boxes), right.slabs(logical, boxes), strict=True):
        found.add(one, two, box)
        progress(one.nbytes + two.nbytes)
    counted: dict[str, Any] = {"elements": found.elements, "of": prod(dims), "largest": found.largest}
    counted |= {"at": dict(zip(axes.names, found.at, strict=bool(found.at))), "nonfinite": found.nonfinite}
    if dtypes[0] != dtypes[1]:
        said = [str(dtype).removeprefix("torch.") for dtype in dtypes]
        return Difference(tensor=name, how="dtype", a=said[0], b=said[1], **counted)
    if not found.elements:
        return None
    return Difference(tensor=name, how="bits", a=found.values[0], b=found.values[1], **counted)


@dataclass(slots=True)
class _Found:
    """Differing elements of one tensor, over all its slabs."""

    elements: int = 0
    nonfinite: int = 0
    largest: float | None = None
    at: tuple[int, ...] = ()
    values: tuple[str, str] = ("", "")
    """Of the element at `at`; while no two finite ones differ, of the first that differs."""

    def add(self, one: torch.Tensor, two: torch.Tensor, box: Box) -> None:
        differ = _differ(one, two)
        if differ is None:
            return
        exact = torch.float64 if max(one.dtype.itemsize, two.dtype.itemsize) > 2 else torch.float32
        apart = (one.to(exact) - two.to(exact)).abs()
        counts = differ & apart.isfinite()
        self.elements += int(differ.count_nonzero())
        self.nonfinite += int((differ & ~counts).count_nonzero())
        if not counts.any():
            if not self.values[0]:
                self._keep(one, two, int(differ.flatten().byte().argmax()), box)
            return
        apart.masked_fill_(~counts, -1.0)
        worst = int(apart.argmax())
        if self.largest is None or float(apart.flatten()[worst]) > self.largest:
            self.largest = float(apart.flatten()[worst])
            self._keep(one, two, worst, box)

    def _keep(self, one: torch.Tensor, two: torch.Tensor, index: int, box: Box) -> None:
        inside = torch.unravel_index(torch.tensor(index), one.shape)
        self.at = tuple(start + int(i) for (start, _), i in zip(box, inside, strict=True))
        self.values = f"{float(one[inside]):g}", f"{float(two[inside]):g}"


def _differ(one: torch.Tensor, two: torch.Tensor) -> torch.Tensor | None:
    """Which elements differ: in any bit, or in value where the dtypes differ. None: none do."""
    if one.dtype == two.dtype:
        x, y = bits(one), bits(two)
    else:
        wide = torch.promote_types(one.dtype, two.dtype)
        x, y = one.to(wide), two.to(wide)
    return None if torch.equal(x, y) else x != y
