"""A blend judged by its own recipe: each tensor is made again, whole and in fp64, from the models that it was made of."""

import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from mconv.convert.blend import models as blends
from mconv.convert.blend import reference
from mconv.convert.blend.source import Blend, Merged
from mconv.convert.checkpoint.model import SourceModel
from mconv.convert.sources.read import assemble
from mconv.convert.sources.source import Source, dtype_of
from mconv.convert.spelling.table import Stored
from mconv.errors import FormatError, MconvError
from mconv.verify import environment
from mconv.verify.progress import ShowProgress, silent
from mconv.verify.specs import in_words, spec_differences

SHOWN = 20
"""Tensors that are named, of those that are wrong."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wrong:
    """A Hugging Face tensor that is not what the recipe makes."""

    name: str
    elements: int
    """How many of its elements are farther away than rounding explains."""
    of: int
    largest: float
    """The largest distance from what the recipe makes."""

    def __str__(self) -> str:
        return f"{self.name}: {self.elements:,} of {self.of:,} elements are wrong, at most {self.largest:.3g} apart"


def is_blend(model: SourceModel) -> bool:
    """Return whether a model's manifest has the recipe that it is a blend by."""
    return blends.KEY in (model.manifest or {})


def judge(model: SourceModel, *, sample: int | None = None, show: ShowProgress = silent) -> dict[str, Any]:
    """Return the report on a blend: of all its tensors, or of a `sample` of so many.

    Raises MconvError where a model that it was made of is not there any more, or has changed.
    """
    began = time.monotonic()
    blend = _again(model)
    chosen = _chosen(blend, sample)
    with show(sum(one.member.elements for one in chosen), "making tensors anew from the recipe") as advance:
        _check_models(model, blend, chosen)
        wrong = []
        for merged in chosen:
            wrong += list(_wrong(model, blend, merged))
            advance(merged.member.elements)
    apart = spec_differences(blend.spec, model.spec)
    return _report(model, blend, chosen, wrong, in_words(apart) if apart else "") | {
        "environment": environment.describe(seconds=time.monotonic() - began)
    }


def _again(model: SourceModel) -> Blend:
    made = blends.model_of(blends.request_of(model.manifest or {}, model.path), ignore=blends.passed(model))
    assert isinstance(made.source, Blend)
    return made.source


def _chosen(blend: Blend, sample: int | None) -> list[Merged]:
    tensors = [merged for group in blend.tensors_of.values() for merged in group]
    if sample is None or sample >= len(tensors):
        return tensors
    if sample < 1:
        raise MconvError(f"--sample is {sample}; it must be at least 1")
    picked = random.Random(f"{blend.fingerprint()}{sample}").sample(range(len(tensors)), sample)
    return [tensors[at] for at in sorted(picked)]


def _check_models(model: SourceModel, blend: Blend, chosen: Sequence[Merged]) -> None:
    """Raise FormatError where what is read of a model is not what the blend was made of."""
    told = (model.manifest or {})[blends.KEY].get("sources", {})
    for name in blend.sources:
        wanted = {logical for merged in chosen for one, logical in merged.inputs if one == name}
        known = told.get(str(name), {}).get("digests", {})
        found = blends.digests_of(blend, name, wanted) if wanted else {}
        if changed := [tensor for tensor, digest in found.items() if known.get(tensor) != digest]:
            raise FormatError(
                f"{blend.sources[name].label}: {len(changed)} tensors ({', '.join(changed[:5])}) have changed since "
                f"{model.path} was made of them; restore it, or blend again"
            )


def _wrong(model: SourceModel, blend: Blend, merged: Merged) -> Iterator[Wrong]:
    """Yield what is wrong with a tensor, if something is."""
    member, merge = merged.member, blend.merge(merged)
    inputs = [
        _whole(blend.sources[name], Stored(member.key, logical, member.stored.piece)) for name, logical in merged.inputs
    ]
    expected = reference.evaluate(blend.recipe.method.name, merge, inputs)
    found = _whole(model.source, member.stored)
    (kind,) = blend.dtypes(member.logical)
    for dtype in dict.fromkeys((getattr(torch, kind.name), found.dtype)):
        expected = expected.stored_as(dtype)
    bad = expected.wrong(found)
    if count := int(bad.sum()):
        apart = (found.double() - expected.values).abs()[bad]
        yield Wrong(name=member.key, elements=count, of=member.elements, largest=float(apart.max()))


def _whole(source: Source, stored: Stored) -> torch.Tensor:
    return assemble(source, stored, dtype=dtype_of(source, stored.logical))


def _report(
    model: SourceModel, blend: Blend, chosen: Sequence[Merged], wrong: Sequence[Wrong], apart: str
) -> dict[str, Any]:
    total = sum(len(group) for group in blend.tensors_of.values())
    passed = not wrong and not apart
    failures = [f"the architecture differs: {apart}"] * bool(apart) + [str(one) for one in wrong]
    return {
        "schema": 1,
        "passed": passed,
        "failures": failures,
        "digests": {"same": passed, "lines": _lines(model, blend, (len(chosen), total), failures), "warnings": []},
        "diagnosis": None,
        "training": None,
        "assumed": list(model.notes),
        "blend": {"method": blend.recipe.method.name, "models": _names(blend), "tensors": len(chosen), "of": total,
                  "wrong": [asdict(one) for one in wrong]},
        "verdicts": {"digests": "pass" if passed else "fail", "logits": "not run", "generation": "not run"},
    }  # fmt: skip


def _names(blend: Blend) -> list[str]:
    return list(map(str, blend.sources))


def _lines(model: SourceModel, blend: Blend, counts: tuple[int, int], failures: Sequence[str]) -> list[str]:
    count, total = counts
    made = f"{blend.recipe.method.title} of {', '.join(_names(blend))}"
    looked = f"{count} of {total} tensors" if count < total else f"all {total} tensors"
    if not failures:
        return [f"SAME: {model.name} is the {made}: {looked} made anew in fp64, within the rounding of what is stored"]
    more = [f"  and {len(failures) - SHOWN} more"] if len(failures) > SHOWN else []
    return [f"DIFFERENT: {model.name} is not the {made} ({looked} made anew in fp64)",
            *(f"  {line}" for line in failures[:SHOWN]), *more]  # fmt: skip
