"""The change that training made to a model, for two checkpoints of one model before and after training.

That they differ is no fault then, and no fault is looked for. The manifests, or the user, say whether training lies
between; other shapes, NaN and differences of the architecture remain faults.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from mconv.convert.checkpoint.model import SourceModel
from mconv.convert.formats.mapped import forget
from mconv.convert.sources.read import Progress, quiet
from mconv.convert.sources.source import Source, dims_of, nbytes_of, slab_boxes, split_of
from mconv.convert.spelling.table import Logical
from mconv.verify.digests import Report, held
from mconv.verify.specs import in_words

Squares = tuple[float, float]
"""Squared norms of a difference and of the reference."""
STEPS = ("train", "lora", "lora merge")
"""Steps of a manifest's history that change the weights."""
SLAB = 1 << 20
"""Elements in memory at once, in double precision."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """Distance between the tensors of two checkpoints that both have in the same shape."""

    relative_norm: float
    """Norm of the difference over the norm of the reference, over all these tensors."""
    changed: int
    """Number of elements that differ in any bit."""
    elements: int
    tensors_changed: int
    tensors: int
    by_tensor: list[dict[str, Any]]
    """Changed tensors, the most changed first: `name` and `relative_norm`."""
    by_layer: list[dict[str, Any]]
    by_module: list[dict[str, Any]]


def between(a: SourceModel, b: SourceModel) -> list[str]:
    """Return in words the training steps that only one of the two histories has."""
    own, other = (_training(c) for c in (a, b))
    same = 0
    while same < min(len(own), len(other)) and own[same] == other[same]:
        same += 1
    return [_words(step) for step in (*own[same:], *other[same:])]


def measure(a: SourceModel, b: SourceModel, found: Report, *, progress: Progress = quiet) -> Change:
    """Return how far apart the tensors are, given their comparison `found`. Reads both checkpoints once more."""
    left, right = a.source, b.source
    changed = {d.tensor: d for d in found.differences if d.how == "bits"}
    sums: dict[Logical, Squares] = {}
    skipped = {d.tensor for d in found.differences if d.how != "bits"}
    for logical in a.family.logicals(a.spec):
        names = held(left, logical), held(right, logical)
        if names[0] is None or names[1] is None or str(logical) in skipped:
            continue
        sums[logical] = _squares(left, right, (names[0], names[1]), read_both=str(logical) in changed)
        progress(sum(nbytes_of(s, n) for s, n in zip((left, right), names, strict=True) if n))
        forget()
    return Change(
        relative_norm=_over(sums.values()),
        changed=sum(d.elements for d in changed.values()),
        elements=sum(math.prod(dims_of(left, held(left, x) or x)) for x in sums),
        tensors_changed=len(changed),
        tensors=len(sums),
        by_tensor=_ranked({x: two for x, two in sums.items() if str(x) in changed}, str),
        by_layer=_ranked(sums, lambda x: x.row if x.layer is None else f"layer {x.layer}"),
        by_module=_ranked(sums, lambda x: x.row.removeprefix("layer.")),
    )


def describe(steps: list[str], *, asked: bool) -> dict[str, Any]:
    """Return the part of a report about training, before anything is read."""
    return {"between": steps, "asked": asked, "faults": [], "change": None}


def faults(found: Report) -> list[str]:
    """Return what no training does: other sizes, missing tensors, numbers that are not finite."""
    out = [f"the architectures differ: {in_words(found.spec)}"] if found.spec else []
    for d in found.differences:
        if d.how != "bits":
            out.append(f"{d.tensor} is {'missing on one side' if d.how == 'missing' else f'{d.a} against {d.b}'}")
        elif d.nonfinite:
            out.append(f"{d.tensor}: {d.nonfinite:,} of its elements are NaN or infinite on one side")
    return out + found.contradictions


def _training(c: SourceModel) -> list[dict[str, Any]]:
    steps = (c.manifest or {}).get("history", [])
    return [step for step in steps if isinstance(step, dict) and step.get("step") in STEPS]


def _words(step: dict[str, Any]) -> str:
    """Return one step of a history in words: `train to iteration 20`, `lora`."""
    detail = step.get("detail") if isinstance(step.get("detail"), dict) else {}
    at = (detail or {}).get("iteration")
    return f"{step['step']} to iteration {at}" if isinstance(at, int) else str(step["step"])


def _squares(left: Source, right: Source, names: tuple[Logical, Logical], *, read_both: bool) -> Squares:
    """Return the squared norm of the difference and of the reference. Equal tensors are read on one side only."""
    apart = own = 0.0
    dims = dims_of(left, names[0])
    for box in slab_boxes(dims, SLAB, keep=min(split_of(left, names[0]), split_of(right, names[1]))):
        one = left.pull(names[0], box).double()
        own += float(one.square().sum())
        if read_both:
            apart += float((right.pull(names[1], box).double() - one).square().sum())
    return apart, own


def _over(squares: Iterable[Squares]) -> float:
    """Return the norm of a difference over that of the reference, both given squared for each tensor."""
    apart, own = (sum(each) for each in zip(*squares, strict=True)) if (squares := list(squares)) else (0.0, 0.0)
    return math.sqrt(apart / own) if own else math.inf if apart else 0.0


def _ranked(sums: Mapping[Logical, Squares], name_of: Callable[[Logical], str]) -> list[dict[str, Any]]:
    """Return the change of each group of tensors with the same name, the largest first."""
    groups: dict[str, list[Squares]] = {}
    for logical, squares in sums.items():
        groups.setdefault(name_of(logical), []).append(squares)
    found = [{"name": name, "relative_norm": _over(group)} for name, group in groups.items()]
    return sorted(found, key=lambda one: -math.inf if math.isnan(one["relative_norm"]) else -one["relative_norm"])
