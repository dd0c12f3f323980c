"""Known faults of a blend: each says what a wrong tensor would be if it were behind it; the first that fits is named."""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations, permutations
from math import prod
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mconv.convert.blend.slabs import Merge
from mconv.convert.blend.source import Merged
from mconv.convert.blend.whole import Expected

if TYPE_CHECKING:
    from mconv.verify.recipes.blend import BlendAgain

ALIKE = 0.95
"""Share of the elements that a shifted mask explains."""
SHIFTS = (1, -1, 2, -2)
HEADS = 16
"""The most heads that are looked for in each other's place."""


@dataclass(frozen=True, slots=True)
class Case:
    """A wrong tensor, what it should be, and what it was made of."""

    again: "BlendAgain"
    merged: Merged
    merge: Merge
    inputs: Sequence[Tensor]
    expected: Expected
    found: Tensor

    @property
    def names(self) -> list[str]:
        """The models' names, in the order of the inputs."""
        return [str(name) for name, _ in self.merged.inputs]

    @property
    def bad(self) -> Tensor:
        """Which elements are wrong."""
        return self.expected.wrong(self.found)

    def made(self, merge: Merge, inputs: Sequence[Tensor]) -> Expected:
        """Return what another merge makes of some tensors."""
        return self.again.evaluated(self.merged, merge, inputs)

    def with_input(self, at: int, values: Tensor) -> Expected:
        """Return what the recipe would make with another tensor of one model."""
        return self.made(self.merge, [values if i == at else one for i, one in enumerate(self.inputs)])

    def siblings(self) -> Iterator[Merged]:
        """Yield the other tensors of the same shape in the same layer: gate for up, value for key."""
        layer, own = self.merged.member.logical.layer, self.merged.member
        every = self.again.merged.values() if layer is not None else ()
        yield from (one for one in every if one.member.logical.layer == layer and one.member.shape == own.shape
                    and one.member.key != own.key)  # fmt: skip

    def elsewhere(self) -> Iterator[Merged]:
        """Yield the same tensor of the other layers."""
        logical, own = self.merged.member.logical, self.merged.member
        for layer in range(self.again.spec.num_layers if logical.layer is not None else 0):
            there = self.again.blend.tensors_of[replace(logical, layer=layer)] if layer != logical.layer else ()
            yield from (one for one in there if one.member.box == own.box)


Guess = tuple[str, Expected]
"""What is wrong, in words, and what the tensor would be then."""


def scaled(case: Case) -> Iterator[Guess]:
    values = case.expected.values
    found = case.found.double().view(values.shape)
    if not found.any():
        yield "it is zero", Expected(torch.zeros_like(values), torch.zeros_like(values))
    factor = float((found * values).sum() / values.square().sum().clamp(min=1e-300))
    if abs(factor - 1) > 1e-5:
        yield f"it is {factor:.4g} times what the recipe makes", Expected(factor * values, 2 * case.expected.slack)


def base_forgotten(case: Case) -> Iterator[Guess]:
    if case.merge.base is not None:
        base = case.inputs[case.merge.base].double().view(case.merge.shape)
        yield "the base was not added", Expected(case.expected.values - base, 2 * case.expected.slack)


def one_model(case: Case) -> Iterator[Guess]:
    for name, values in zip(case.names, case.inputs, strict=True):
        exact = values.double().view(case.merge.shape)
        yield f"it is that of {name} alone", case.again.stored(case.merged, Expected(exact, torch.zeros_like(exact)))


def weights(case: Case) -> Iterator[Guess]:
    others, own = case.merge.others, case.merge.inputs
    swaps = [{a: b, b: a} for a, b in combinations(others, 2)]
    if len(others) <= 4:
        swaps = [dict(zip(others, order, strict=True)) for order in permutations(others)]
    for swap in swaps:
        changed = tuple(own[swap.get(at, at)] for at in range(len(own)))
        if changed != own:
            whose = " and ".join(case.names[at] for at in others if changed[at] != own[at])
            yield (
                f"it is made with the parameters of {whose} exchanged",
                case.made(replace(case.merge, inputs=changed), case.inputs),
            )


def gradient(case: Case) -> Iterator[Guess]:
    tried = [case.merged.bound]
    for one in case.elsewhere():
        if one.bound not in tried:
            tried.append(one.bound)
            merge = replace(case.merge, shared=one.bound.shared, inputs=one.bound.inputs)
            yield f"it is made with the parameters of layer {one.member.logical.layer}", case.made(merge, case.inputs)


def another_tensor(case: Case) -> Iterator[Guess]:
    for one in (*case.siblings(), *case.elsewhere()):
        yield f"it is what the recipe makes of {one.member.key}", case.again.expected(one)


def of_one_model(case: Case) -> Iterator[Guess]:
    for one in (*case.siblings(), *case.elsewhere()):
        for at, values in enumerate(case.again.inputs_of(one)):
            yield f"of {case.names[at]}, {one.member.key} was taken", case.with_input(at, values)


def heads(case: Case) -> Iterator[Guess]:
    where = _head_dim(case)
    if where is None:
        return
    dim, width = where
    bad = case.bad.movedim(dim, 0).unflatten(0, (-1, width)).flatten(1).any(dim=1)
    wrong = [int(head) for head in bad.nonzero()]
    for a, b in combinations(wrong, 2) if len(wrong) <= HEADS else ():
        exact, slack = (_exchanged(one, dim, width, a, b) for one in (case.expected.values, case.expected.slack))
        yield f"heads {a} and {b} are exchanged", Expected(exact, slack)
        for at, values in enumerate(case.inputs):
            changed = _exchanged(values.view(case.merge.shape), dim, width, a, b)
            yield f"of {case.names[at]}, heads {a} and {b} are exchanged", case.with_input(at, changed)


def _head_dim(case: Case) -> tuple[int, int] | None:
    """Return the dimension of a tensor that counts heads, and the width of each; None where none does."""
    member, names = case.merged.member, case.merged.member.row.axes_of(case.merged.member.logical.leaf).names
    if "h" not in names:
        return None
    behind = member.order[member.order.index(names.index("h")) + 1 :]
    inner, left = prod(member.dims[axis] for axis in behind), 1
    for dim in reversed(range(len(member.shape))):
        left *= member.shape[dim]
        if left > inner:
            return dim, member.dims[names.index("h")]
    return None


def _exchanged(values: Tensor, dim: int, width: int, a: int, b: int) -> Tensor:
    parts = list(values.split(width, dim=dim))
    parts[a], parts[b] = parts[b], parts[a]
    return torch.cat(parts, dim=dim)


GUESSES: Mapping[str, Callable[[Case], Iterator[Guess]]] = {
    "scale": scaled, "base": base_forgotten, "model": one_model, "weights": weights, "gradient": gradient, "heads": heads,
    "tensor": another_tensor, "input": of_one_model,
}  # fmt: skip


def explain(case: Case, kinds: Collection[str]) -> tuple[str, str]:
    """Return the kind of fault, of these, that explains a wrong tensor, and what it is in words; empty if none does."""
    for kind in (kind for kind in GUESSES if kind in kinds):
        for why, guess in GUESSES[kind](case):
            if not guess.wrong(case.found).any():
                return kind, why
    return _shifted(case) or _slab(case) or ("", "")


def _shifted(case: Case) -> tuple[str, str] | None:
    """Return the fault of a mask that is right but for its place."""
    if case.merge.base is None:
        return None
    base = case.inputs[case.merge.base].double().view(case.merge.shape)
    kept, found = ((one.double().view(base.shape) != base).flatten() for one in (case.expected.values, case.found))
    row = case.merge.row
    for shift in (*SHIFTS, row, -row):
        if not kept.all() and float((kept.roll(shift) == found).double().mean()) >= ALIKE:
            return "mask", f"the mask is shifted by {shift} element{'s' * (abs(shift) != 1)}"
    return None


def _slab(case: Case) -> tuple[str, str] | None:
    """Return the fault of rows that are wrong among others that are right, and whose they are."""
    rows = [int(row) for row in case.bad.flatten(1).any(dim=1).nonzero()] if case.bad.ndim > 1 else []
    if not rows or len(rows) == len(case.bad) or rows[-1] - rows[0] >= len(rows):
        return None
    first, end = rows[0], rows[-1] + 1
    span = f"row {first}" if len(rows) == 1 else f"rows {first}-{end - 1}"
    found = case.found.view(case.merge.shape)[first:end]
    for one in (*case.siblings(), *case.elsewhere()):
        other = case.again.expected(one)
        if not Expected(other.values[first:end], other.slack[first:end]).wrong(found).any():
            return "slab", f"{span}: those of {one.member.key} stand there"
    return "slab", f"{span} alone {'is' if len(rows) == 1 else 'are'} wrong"
