"""Two checkpoints of any format, tensor by tensor: do they hold the same bits? No model is run.

Both are read once, slab by slab, from their files. Digests in a manifest are checked against the bytes on the way. Where
dtypes differ, the wider side must equal the narrower one after rounding.
"""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from itertools import chain
from math import prod
from typing import Any

import torch

from mconv.convert.checkpoint.model import SourceModel
from mconv.convert.folders.digests import ALGORITHMS, Recorded, recorded
from mconv.convert.folders.host import SLAB_BYTES
from mconv.convert.formats.mapped import bytes_of, forget
from mconv.convert.sources.read import Progress, quiet
from mconv.convert.sources.scratch import Scratch
from mconv.convert.sources.source import Slab, Source, dims_of, dtype_of, nbytes_of, slab_boxes, split_of
from mconv.convert.spelling.table import Logical
from mconv.shard.axes import Axes, Box
from mconv.verify.differences import Difference, DifferenceTally, StoredPieces, tp_ranks
from mconv.verify.specs import spec_differences, spec_notes

__all__ = ["Difference", "Report", "compare", "describe", "held", "nbytes", "spec_differences", "tp_ranks"]
SHORT = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16", torch.float64: "fp64"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """Result of comparing two checkpoints tensor by tensor. `same` is the answer."""

    a: str
    b: str
    tensors: int
    """Number of logical tensors that both have."""
    nbytes: int
    """Bytes of the first checkpoint that were compared."""
    spec: dict[str, tuple[Any, Any]]
    """Differing fields of the architecture that change the function: norm epsilon, rope, window, vocabulary, sizes."""
    noted: dict[str, tuple[Any, Any]]
    """Differing fields of the architecture that do not change the function."""
    differences: tuple[Difference, ...]
    cast: dict[str, tuple[str, str]]
    """Dtypes of both sides, by tensor that is the same after rounding the wider side to the narrower."""
    zero_biases: tuple[str, ...]
    """Biases that only one side stores and that are zero there: the same function."""
    stale: dict[str, tuple[str, ...]]
    """Tensors, by side, whose bytes do not match the digest in that side's own manifest."""
    replicas: dict[str, dict[str, tuple[str, ...]]]
    """Stored tensors, by side and tensor, whose copies differ. The first is the copy that was compared."""

    @property
    def same(self) -> bool:
        """True if both compute the same function, apart from rounding of the weights."""
        return not self.spec and not self.differences and not any(self.replicas.values())

    @property
    def contradictions(self) -> list[str]:
        """A sentence for each tensor whose copies within one checkpoint differ."""
        return [
            f"{name}: copies of {tensor} differ, so it is no one model: {' and '.join(others)} against {kept}"
            for name, side in ((self.a, "a"), (self.b, "b"))
            for tensor, (kept, *others) in self.replicas[side].items()
        ]

    @property
    def exact(self) -> bool:
        """True if they are the same without rounding: every tensor bit for bit."""
        return self.same and not self.cast

    def to_dict(self) -> dict[str, Any]:
        return {"same": self.same, "exact": self.exact, **asdict(self)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Report":
        """Return the report that `to_dict` wrote, also if it has been JSON in between."""
        own = {name: values[name] for name in (f.name for f in fields(cls))}
        pairs = {name: {key: tuple(two) for key, two in own[name].items()} for name in ("spec", "noted", "cast", "stale")}
        differences = tuple(Difference.from_dict(one) for one in own["differences"])
        copies = {side: {key: tuple(keys) for key, keys in own["replicas"][side].items()} for side in own["replicas"]}
        return cls(
            **{**own, **pairs, "differences": differences, "zero_biases": tuple(own["zero_biases"]), "replicas": copies}
        )


@dataclass(frozen=True, slots=True)
class _Side:
    """One checkpoint being read. Each tensor is hashed on the way if the manifest has a digest of it."""

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
        """Yield a tensor slab after slab, contiguous, each overwritten by the next. Copies that differ are noted."""
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
        """Return a shape by named axes: `(g 4, s 4, h 6) x d 48`."""
        sizes = dict(zip(self.axes(logical).names, dims_of(self.source, logical), strict=True))
        groups = [", ".join(f"{name} {sizes[name]}" for name in group) for group in self.axes(logical).groups]
        return " x ".join(f"({text})" if ", " in text else text for text in groups)


def compare(a: SourceModel, b: SourceModel, *, progress: Progress = quiet, read_all: bool = True) -> Report:
    """Return the comparison of every logical tensor of two checkpoints, and of their architectures.

    A tied head equals the embedding, also if the other side stores a head. Copies of one tensor must agree, too.
    `progress` counts the bytes read of both. Without `read_all`, a tensor that has nothing to be compared with is not
    read, and neither its digest nor its copies are checked.
    """
    left, right = _Side.of(a, read_all=read_all), _Side.of(b, read_all=read_all)
    spec, noted = spec_differences(a.spec, b.spec), spec_notes(a.spec, b.spec)
    differences: list[Difference] = []
    cast, zero, both, nbytes = {}, [], 0, 0
    for logical in _all(a, b):
        forget()  # unmap the tensor before: mapped pages count as memory
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
    """Return the logical tensor that holds another one: itself, the embedding for a tied head, or None."""
    if logical not in source.tensors() and logical == source.family.head and source.spec.tied_embeddings:
        return source.family.embedding
    return logical if logical in source.tensors() else None


def _half(progress: Progress) -> Progress:
    """Return a progress that counts half: of an embedding and a tied head, only one was not read before."""
    return lambda n: progress(n // 2)


def _short(dtype: torch.dtype) -> str:
    return SHORT.get(dtype, str(dtype).removeprefix("torch."))


def nbytes(c: SourceModel) -> int:
    """Return the bytes of a checkpoint's logical tensors, which a comparison reads."""
    return sum(nbytes_of(c.source, x) for x in c.source.tensors())


def describe(c: SourceModel) -> str:
    """Return a checkpoint's name, format, dialect and layout in a few words."""
    layout = f", tp {c.layout.tp} x pp {c.layout.pp}" if c.layout else ""
    return f"{c.name} ({c.format}{f', {c.dialect}' if c.dialect else ''}{layout})"


def _all(a: SourceModel, b: SourceModel) -> list[Logical]:
    """Return the tensors of both in the order of the forward pass; those that only the second has come last."""
    first = [x for x in a.family.logicals(a.stored_spec) if x in a.source.tensors()]
    return first + [
        x for x in b.family.logicals(b.stored_spec) if x in b.source.tensors() and x not in a.source.tensors()
    ]


def _boxes(x: Logical, y: Logical, left: _Side, right: _Side) -> tuple[list[Box], list[Box]] | None:
    """Return slabs that suit how each side stores a tensor: of the rows that both have, and of those that one has more.

    Returns None if the shapes differ in more than the size of the vocabulary.
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
    """Read a tensor that has nothing to be compared with, for its digest; return whether it is zero."""
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
    """Return whether a tensor is a bias of zeros: megatron-core has biases on all linears or none, so it may add some."""
    norm = side.source.family.row(logical.row).kind == "norm"
    return _read(side, logical, progress) and logical.leaf == "bias" and not norm


def _compare(
    left: _Side, right: _Side, pair: tuple[Logical, Logical], name: str, progress: Progress
) -> Difference | None:
    """Return the difference of one logical tensor, None if there is none. A tied head has another name on one side."""
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
    found = DifferenceTally((StoredPieces(left.source, pair[0]), StoredPieces(right.source, pair[1])))
    for box, one, two in zip(common, ones, twos, strict=False):  # one side may have rows beyond
        found.add(one, two, box)
        progress(one.nbytes + two.nbytes)
    zero = _zero(chain(ones, twos), progress)
    if not rows and not found.elements:
        return None
    shown = shapes if rows else found.values
    of = sum(prod(stop - start for start, stop in box) for box in common)
    return Difference(
        tensor=name, how="shape" if rows else "bits", a=shown[0], b=shown[1], of=of, rows=rows,
        rows_zero=bool(rows) and zero, **_element_fields(found, left, right),
    )  # fmt: skip


def _element_fields(found: DifferenceTally, left: _Side, right: _Side) -> dict[str, Any]:
    """Return the fields of a `Difference` that describe its elements."""
    one, two = found.pieces
    dtypes = dtype_of(left.source, one.logical), dtype_of(right.source, two.logical)
    names, megatron = left.axes(one.logical).names, not left.model.is_pretrained
    return {
        "elements": found.elements, "largest": found.largest, "nonfinite": found.nonfinite,
        "at": dict(zip(names, found.at, strict=bool(found.at))),
        "extent": dict(zip(names, found.extent, strict=bool(found.extent))),
        "dtypes": (_short(dtypes[0]), _short(dtypes[1])) if dtypes[0] != dtypes[1] else None,
        "pieces": tuple(two.hit), "of_pieces": two.total,
        "a_pieces": tuple(one.hit) if megatron else (), "of_a_pieces": one.total if megatron else 0,
    }  # fmt: skip
