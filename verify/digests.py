"""Two checkpoints of any spelling, tensor by tensor: do they hold the same bits? Nothing is computed from the weights.

Both are read once, slab by slab, straight from what lies on disk; what a manifest says of a checkpoint is held against
its bytes on the way, never believed. Where dtypes differ, the wider side must be the other one before it was rounded.
"""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from itertools import chain
from math import prod
from typing import Any

import torch

from mconv.convert.checkpoint import SourceModel
from mconv.convert.digests import ALGORITHMS, Recorded, recorded
from mconv.convert.formats.mapped import bytes_of, forget
from mconv.convert.host import SLAB_BYTES
from mconv.convert.sources.read import Progress, quiet
from mconv.convert.sources.scratch import Scratch
from mconv.convert.sources.source import Slab, Source, dims_of, dtype_of, nbytes_of, slab_boxes, split_of
from mconv.convert.table import Logical
from mconv.shard.axes import Axes, Box
from mconv.verify.specs import spec_differences, spec_notes
from mconv.verify.where import Difference, Found, Pieces, tp_ranks

__all__ = ["Difference", "Report", "compare", "describe", "held", "nbytes", "spec_differences", "tp_ranks"]
SHORT = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16", torch.float64: "fp64"}


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
    """What is no tensor, differs and changes the function: norm epsilon, rope, window, vocabulary, sizes."""
    noted: dict[str, tuple[Any, Any]]
    """What is no tensor and differs, and the function is the same."""
    differences: tuple[Difference, ...]
    cast: dict[str, tuple[str, str]]
    """Tensors that are the same after rounding the wider side to the narrower one: the dtypes of both."""
    zero_biases: tuple[str, ...]
    """Biases that only one side stores, and there they are zero: the same function."""
    stale: dict[str, tuple[str, ...]]
    """By side, tensors whose bytes are not those that its own manifest recorded."""
    replicas: dict[str, dict[str, tuple[str, ...]]]
    """By side, tensors whose copies differ: what holds them. The first is the copy that was compared."""

    @property
    def same(self) -> bool:
        """Whether both compute the same function, rounding of the weights aside."""
        return not self.spec and not self.differences and not any(self.replicas.values())

    @property
    def contradictions(self) -> list[str]:
        """A sentence for each tensor of which a checkpoint holds copies that differ."""
        return [
            f"{name}: copies of {tensor} differ, so it is no one model: {' and '.join(others)} against {kept}"
            for name, side in ((self.a, "a"), (self.b, "b"))
            for tensor, (kept, *others) in self.replicas[side].items()
        ]

    @property
    def exact(self) -> bool:
        """Whether that needs no rounding: every tensor bit for bit."""
        return self.same and not self.cast

    def to_dict(self) -> dict[str, Any]:
        return {"same": self.same, "exact": self.exact, **asdict(self)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Report":
        """The inverse of `to_dict`, also when it has been JSON in between."""
        own = {name: values[name] for name in (f.name for f in fields(cls))}
        pairs = {name: {key: tuple(two) for key, two in own[name].items()} for name in ("spec", "noted", "cast", "stale")}
        told = tuple(Difference.from_dict(one) for one in own["differences"])
        copies = {side: {key: tuple(keys) for key, keys in own["replicas"][side].items()} for side in own["replicas"]}
        return cls(**{**own, **pairs, "differences": told, "zero_biases": tuple(own["zero_biases"]), "replicas": copies})


@dataclass(frozen=True, slots=True)
class _Side:
    """One checkpoint being read: each tensor is hashed on the way where its manifest says what the hash should be."""

    model: SourceModel
    recorded: Recorded
    stale: list[str]
    replicas: dict[str, list[str]]
    scratch: Scratch
    read_all: bool = True

    @classmethod
    def of(cls, model: SourceModel, *, read_all: bool = True) -> "_Side":
        return cls(model, recorded(model.path, model.manifest), [], {}, Scratch(), read_all)

    @property
    def source(self) -> Source:
        return self.model.source

    def slabs(self, logical: Logical, boxes: list[Box]) -> Iterator[torch.Tensor]:
        """Slab after slab, contiguous; each is overwritten by the next. Copies of it that differ are noted."""
        want = self.recorded.digests.get(str(logical))
        digest = ALGORITHMS[self.recorded.algorithm]()
        for box in boxes:
            slab = self.scratch.packed("slab", self.source.pull(logical, box, self.scratch))
            for other, kept in self.source.conflicts(logical, Slab(box, slab)):
                found = self.replicas.setdefault(str(logical), [kept.key])
                found += [other.key] if other.key not in found else []
            if want is not None:
                digest.update(bytes_of(slab))
            yield slab
        if want is not None and digest.hexdigest() != want and str(logical) not in self.stale:
            self.stale.append(str(logical))

    def axes(self, logical: Logical) -> Axes:
        return self.source.family.axes(logical)

    def shape(self, logical: Logical) -> str:
        """`(g 4, s 4, h 6) x d 48`."""
        sizes = dict(zip(self.axes(logical).names, dims_of(self.source, logical), strict=True))
        groups = [", ".join(f"{name} {sizes[name]}" for name in group) for group in self.axes(logical).groups]
        return " x ".join(f"({text})" if ", " in text else text for text in groups)


def compare(a: SourceModel, b: SourceModel, *, progress: Progress = quiet, read_all: bool = True) -> Report:
    """Compare every logical tensor of two checkpoints, and what their architectures say beyond tensors.

    A tied head is the embedding, also where the other side stores a head. Copies of one tensor must agree, too.
    `progress` is told the bytes read of both. Without `read_all`, tensors that have nothing to be compared with are not
    read, so that neither their digests nor their copies are looked at.
    """
    left, right = _Side.of(a, read_all=read_all), _Side.of(b, read_all=read_all)
    spec, noted = spec_differences(a.spec, b.spec), spec_notes(a.spec, b.spec)
    differences: list[Difference] = []
    cast, zero, both, nbytes = {}, [], 0, 0
    for logical in _all(a, b):
        forget()  # the one before: mapped pages count as memory as long as they are mapped
        x, y = (held(side.source, logical) for side in (a, b))
        if x and y:
            half = _half(progress) if x != y else progress
            found = _compare(left, right, (x, y), str(logical), half)
            dtypes = dtype_of(left.source, x), dtype_of(right.source, y)
            both += x == y
            unread = not read_all and found is not None and found.how == "shape" and not found.of
            nbytes += nbytes_of(left.source, x) if x == y and not unread else 0
            if found is None and dtypes[0] != dtypes[1]:
                cast[str(logical)] = (_short(dtypes[0]), _short(dtypes[1]))
            if x != y and (found is None or not found.elements):
                noted["tied_embeddings"] = spec.pop("tied_embeddings")
            differences += [] if found is None else [found]
        elif _zero_bias(left if x else right, logical, progress):
            zero.append(str(logical))
        else:
            stored = ["stored" if there else "missing" for there in (x, y)]
            differences.append(Difference(tensor=str(logical), how="missing", a=stored[0], b=stored[1]))
    return Report(
        a=describe(a), b=describe(b), tensors=both, nbytes=nbytes, spec=spec, noted=noted, cast=cast,
        differences=tuple(differences), zero_biases=tuple(zero),
        stale={name: tuple(side.stale) for name, side in (("a", left), ("b", right))},
        replicas={name: {tensor: tuple(keys) for tensor, keys in side.replicas.items()}
                  for name, side in (("a", left), ("b", right))},
    )  # fmt: skip


def held(source: Source, logical: Logical) -> Logical | None:
    """Return what a source holds a logical tensor as: itself, the embedding for a tied head, or nothing."""
    if logical not in source.tensors() and logical == source.family.head and source.spec.tied_embeddings:
        return source.family.embedding
    return logical if logical in source.tensors() else None


def _half(progress: Progress) -> Progress:
    """Of an embedding and a head, only the head was not read before."""
    return lambda n: progress(n // 2)


def _short(dtype: torch.dtype) -> str:
    return SHORT.get(dtype, str(dtype).removeprefix("torch."))


def nbytes(c: SourceModel) -> int:
    """Bytes of its logical tensors: what a comparison reads of it."""
    return sum(nbytes_of(c.source, x) for x in c.source.tensors())


def describe(c: SourceModel) -> str:
    """Name, format, dialect and layout in a few words."""
    layout = f", tp {c.layout.tp} x pp {c.layout.pp}" if c.layout else ""
    return f"{c.name} ({c.format}{f', {c.dialect}' if c.dialect else ''}{layout})"


def _all(a: SourceModel, b: SourceModel) -> list[Logical]:
    """The tensors of both in the order of the forward pass, those of the second alone last."""
    first = [x for x in a.family.logicals(a.stored_spec) if x in a.source.tensors()]
    return first + [
        x for x in b.family.logicals(b.stored_spec) if x in b.source.tensors() and x not in a.source.tensors()
    ]


def _boxes(x: Logical, y: Logical, left: _Side, right: _Side) -> tuple[list[Box], list[Box]] | None:
    """Slabs that suit how each side stores the tensor: of what both have, of the rows that one has beyond.

    None: the shapes differ in more than the size of the vocabulary.
    """
    one, two = dims_of(left.source, x), dims_of(right.source, y)
    if one[1:] != two[1:] or (one[0] != two[0] and left.axes(x).names[0] != "v"):
        return None
    width = max(dtype_of(left.source, x).itemsize, dtype_of(right.source, y).itemsize)
    keep, shared = min(split_of(left.source, x), split_of(right.source, y)), min(one[0], two[0])
    common = slab_boxes((shared, *one[1:]), SLAB_BYTES // width, keep=keep)
    beyond = slab_boxes((abs(one[0] - two[0]), *one[1:]), SLAB_BYTES // width, keep=keep)
    rest = [((start + shared, stop + shared), *box) for (start, stop), *box in beyond] if one != two else []
    return list(common), rest


def _read(side: _Side, logical: Logical, progress: Progress) -> bool:
    """Read a tensor that has nothing to be compared with, for its digest, and return whether it is zero."""
    if not side.read_all:
        return False
    width, keep = dtype_of(side.source, logical).itemsize, split_of(side.source, logical)
    boxes = list(slab_boxes(dims_of(side.source, logical), SLAB_BYTES // width, keep=keep))
    return _zero(side.slabs(logical, boxes), progress)


def _zero(slabs: Iterator[torch.Tensor], progress: Progress) -> bool:
    zero = True
    for slab in slabs:
        zero = zero and not slab.count_nonzero()
        progress(slab.nbytes)
    return zero


def _zero_bias(side: _Side, logical: Logical, progress: Progress) -> bool:
    """megatron-core has biases on all linears or none, so it may hold some that are zero: no difference."""
    norm = side.source.family.row(logical.row).kind == "norm"
    return _read(side, logical, progress) and logical.leaf == "bias" and not norm


def _compare(
    left: _Side, right: _Side, pair: tuple[Logical, Logical], name: str, progress: Progress
) -> Difference | None:
    """The same logical tensor of both; a tied head has another name on one side."""
    shapes = left.shape(pair[0]), right.shape(pair[1])
    boxes = _boxes(*pair, left, right)
    if boxes is None:
        for side, logical in zip((left, right), pair, strict=True):
            _read(side, logical, progress)
        return Difference(tensor=name, how="shape", a=shapes[0], b=shapes[1])
    common, rest = boxes
    rows = dims_of(right.source, pair[1])[0] - dims_of(left.source, pair[0])[0]
    ones = left.slabs(pair[0], common + (rest if rows < 0 else []))
    twos = right.slabs(pair[1], common + (rest if rows > 0 else []))
    found = Found((Pieces(left.source, pair[0]), Pieces(right.source, pair[1])))
    for box, one, two in zip(common, ones, twos, strict=False):  # one side may have rows beyond
        found.add(one, two, box)
        progress(one.nbytes + two.nbytes)
    zero = _zero(chain(ones, twos), progress)
    if not rows and not found.elements:
        return None
    said = shapes if rows else found.values
    of = sum(prod(stop - start for start, stop in box) for box in common)
    return Difference(
        tensor=name, how="shape" if rows else "bits", a=said[0], b=said[1], of=of, rows=rows,
        rows_zero=bool(rows) and zero, **_told(found, left, right),
    )  # fmt: skip


def _told(found: Found, left: _Side, right: _Side) -> dict[str, Any]:
    """What a difference says of its elements."""
    one, two = found.pieces
    dtypes = dtype_of(left.source, one.logical), dtype_of(right.source, two.logical)
    names, megatron = left.axes(one.logical).names, not left.model.importable
    return {
        "elements": found.elements, "largest": found.largest, "nonfinite": found.nonfinite,
        "at": dict(zip(names, found.at, strict=bool(found.at))),
        "extent": dict(zip(names, found.extent, strict=bool(found.extent))),
        "dtypes": (_short(dtypes[0]), _short(dtypes[1])) if dtypes[0] != dtypes[1] else None,
        "pieces": tuple(two.hit), "of_pieces": two.total,
        "a_pieces": tuple(one.hit) if megatron else (), "of_a_pieces": one.total if megatron else 0,
    }  # fmt: skip
