"""The verdict on a model by the recipe in its manifest."""

import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from mconv.convert.blend import models as blends
from mconv.convert.checkpoint.model import SourceModel
from mconv.convert.sources.unfused import Unfused
from mconv.convert.surgery import made
from mconv.errors import MconvError
from mconv.verify import environment
from mconv.verify.differences import Difference
from mconv.verify.digests import Report
from mconv.verify.progress import ShowProgress, silent
from mconv.verify.recipes import blend, surgery
from mconv.verify.recipes.again import Again, Wrong, check_models, nbytes, size
from mconv.verify.specs import in_words, spec_differences, spec_notes

MUCH = 1 << 28
"""Bytes of memory that are told of before they are used."""
SHOWN = 20
"""Lines that are shown, of those about what is wrong."""
AGAIN: Mapping[str, Callable[[SourceModel], Again]] = {blends.KEY: blend.again, made.KEY: surgery.again}
"""Keys of a manifest that keep a recipe, and what makes its model again."""
TITLES: Mapping[str, Callable[[SourceModel], str]] = {blends.KEY: blend.title, made.KEY: surgery.title}


def recipe_of(model: SourceModel) -> str | None:
    """Return the recipe that a model's manifest keeps, in words. Raises MconvError where it cannot be judged by it."""
    return next((title(model) for key, title in TITLES.items() if key in (model.manifest or {})), None)


def judge(model: SourceModel, *, sample: int | None = None, show: ShowProgress = silent) -> dict[str, Any]:
    """Return the report on a model that a recipe makes: on all its tensors, or on a `sample` of so many.

    Raises MconvError where a model that it was made of is not there any more, or has changed.
    """
    began = time.monotonic()
    again = next(make(model) for key, make in AGAIN.items() if key in (model.manifest or {}))
    chosen = _chosen(again, sample)
    held, key = again.memory(chosen)
    needs = f"; about {held / 1e9:.2g} GB of memory, for {key}" * (held > MUCH)
    with show(nbytes(again, model, chosen), f"making tensors anew: {again.title}{needs}") as advance:
        check_models(again, model, chosen, progress=advance)
        wrong = []
        for tensor in chosen:
            wrong += list(again.wrong(tensor))
            advance(size(model, tensor))
    wrong = again.explained(wrong)
    return _report(model, again, chosen, wrong) | {"environment": environment.describe(seconds=time.monotonic() - began)}


def _chosen(again: Again, sample: int | None) -> Sequence[Unfused]:
    tensors = again.tensors
    if sample is None or sample >= len(tensors):
        return tensors
    if sample < 1:
        raise MconvError(f"--sample is {sample}; it must be at least 1")
    picked = random.Random(f"{again.title}{sample}").sample(range(len(tensors)), sample)
    return [tensors[at] for at in sorted(picked)]


def _report(model: SourceModel, again: Again, chosen: Sequence[Unfused], wrong: Sequence[Wrong]) -> dict[str, Any]:
    spec, total = spec_differences(again.spec, model.spec), len(again.tensors)
    digests = Report(
        a=again.title, b=model.name, tensors=len(chosen), nbytes=sum(size(model, tensor) for tensor in chosen), spec=spec,
        noted=spec_notes(again.spec, model.spec), differences=tuple(map(_difference, wrong)), cast={}, zero_biases=(),
        stale={"a": (), "b": ()}, replicas={"a": {}, "b": {}},
    )  # fmt: skip
    apart = in_words(spec | digests.noted)
    besides = [f"the architecture differs: {apart}"] * bool(apart) + again.besides(wrong)
    passed = digests.same and not besides
    failures = [*besides, *map(str, wrong)]
    lines = _lines(model, again, (len(chosen), total), [*besides, *_grouped(wrong)])
    guesses = [{"name": one.kind, "layers": [] if one.layer is None else [one.layer], "tensor": one.name,
                "text": one.why, "error_after": 0.0} for one in wrong if one.kind]  # fmt: skip
    return {
        "schema": 1, "passed": passed, "failures": failures,
        "digests": {**digests.to_dict(), "same": passed, "lines": lines, "warnings": []},
        "diagnosis": {"guesses": guesses, "lines": []} if guesses else None,
        "training": None, "assumed": list(model.notes),
        "recipe": {**again.facts, "tensors": len(chosen), "of": total, "wrong": [asdict(one) for one in wrong]},
        "verdicts": {"digests": "pass" if passed else "fail", "logits": "not run", "generation": "not run"},
    }  # fmt: skip


def _difference(one: Wrong) -> Difference:
    return Difference(
        tensor=one.name, how="bits", a="the recipe's", b=one.why or "another", elements=one.elements, of=one.of,
        largest=one.largest,
    )  # fmt: skip


def _grouped(wrong: Sequence[Wrong]) -> list[str]:
    """Return a line for each wrong tensor, one alone for those that are wrong for the same reason."""
    groups: dict[str, list[Wrong]] = {}
    for one in wrong:
        groups.setdefault(one.why or str(one), []).append(one)
    return [
        str(group[0]) if len(group) == 1 else f"{len(group)} tensors ({group[0].name}, ...): {why}"
        for why, group in groups.items()
    ]


def _lines(model: SourceModel, again: Again, counts: tuple[int, int], failures: Sequence[str]) -> list[str]:
    count, total = counts
    looked = f"{count} of {total} tensors" if count < total else f"all {total} tensors"
    if not failures:
        return [f"SAME: {model.name} is the {again.title}: {looked} {again.proof}"]
    more = [f"  and {len(failures) - SHOWN} more"] if len(failures) > SHOWN else []
    return [f"DIFFERENT: {model.name} is not the {again.title} ({looked} {again.proof.partition(',')[0]})",
            *(f"  {line}" for line in failures[:SHOWN]), *more]  # fmt: skip
