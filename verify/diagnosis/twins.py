"""Tensors that hold another row's values: a norm that is any other norm of the model, a head that is the embedding."""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field

from mconv.convert.sources.source import Source, dims_of, dtype_of
from mconv.convert.spelling.table import Family, Logical
from mconv.verify.diagnosis.layers import sample
from mconv.verify.diagnosis.pair import entire, narrower, same

NAMES = {
    "norm": ("norms-exchanged", "norm-copied"),
    "embedding": ("embed-head-exchanged", "embed-is-head"),
    "head": ("embed-head-exchanged", "head-is-embed"),
}
"""Kind of row -> names of its two faults: exchanged with another row's tensor, and a copy of it."""


@dataclass(frozen=True, slots=True)
class Twin:
    """A tensor of b that equals another row's tensor of a."""

    tensor: Logical
    of: Logical
    name: str
    what: str
    exchanged: bool
    """True if the other tensor of b is in turn this row's tensor of a, so that b still holds what belongs here."""


@dataclass(frozen=True, slots=True)
class _Samples:
    """The first elements of a's tensors, each read once."""

    source: Source
    read: dict[Logical, bytes] = field(default_factory=dict)

    def of(self, logical: Logical, like: Source, other: Logical) -> bytes:
        if logical not in self.read:
            self.read[logical] = sample(
                self.source, logical, narrower(dtype_of(self.source, logical), dtype_of(like, other))
            )
        return self.read[logical]


def twins(a: Source, b: Source, changed: Collection[Logical]) -> list[Twin]:
    """Return the `changed` tensors of b that are other rows' tensors of a, bit for bit."""
    samples = _Samples(a)
    found = {x: y for x in changed if (y := _twin(samples, b, x)) is not None}
    return [_described(x, y, found, a.family) for x, y in found.items()]


def _described(x: Logical, y: Logical, found: Mapping[Logical, Logical], family: Family) -> Twin:
    both = found.get(y) == x
    exchanged, copied = NAMES[family.row(x.row).kind]
    place = "" if y.layer is None or y.layer == x.layer else f" of layer {y.layer}"
    what = f"it is a's {y.row.removeprefix('layer.')}{place}" + (", and that is a's in its place" if both else "")
    return Twin(x, y, exchanged if both else copied, what, both)


def _others(a: Source, logical: Logical) -> Iterator[Logical]:
    """Yield the tensors to compare with: the other table; or other norms, those of the same and of near layers first."""
    family = a.family
    tables = {family.embedding: family.head, family.head: family.embedding}
    if logical in tables:
        yield tables[logical]
    if family.row(logical.row).kind != "norm":
        return
    norms = [x for x in a.tensors() if family.row(x.row).kind == "norm" and x.leaf == logical.leaf and x != logical]
    last = a.spec.num_layers
    own = last if logical.layer is None else logical.layer
    yield from sorted(norms, key=lambda x: abs((last if x.layer is None else x.layer) - own))


def _twin(samples: _Samples, b: Source, logical: Logical) -> Logical | None:
    """Return the other row's tensor of a that b holds here. A constant tensor says nothing about its origin."""
    a = samples.source
    others = [
        x
        for x in _others(a, logical)
        if x in a.tensors() and logical in b.tensors() and dims_of(a, x) == dims_of(b, logical)
    ]
    if not others:
        return None
    dtype = narrower(dtype_of(a, others[0]), dtype_of(b, logical))
    wanted = sample(b, logical, dtype)
    alike = [x for x in others if samples.of(x, b, logical) == wanted]
    tensor = entire(b, logical) if alike else None
    if tensor is None or bool((tensor == tensor.flatten()[0]).all()):
        return None
    return next((x for x in alike if same(entire(a, x), tensor)), None)
