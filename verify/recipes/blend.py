"""Blends made again: each tensor whole and in fp64, from the models that it was made of."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from mconv.convert.blend import models as blends
from mconv.convert.blend import reference
from mconv.convert.blend.slabs import Merge
from mconv.convert.blend.source import Blend, Merged
from mconv.convert.blend.whole import Expected
from mconv.convert.checkpoint.model import SourceModel
from mconv.convert.sources.read import assemble
from mconv.convert.sources.source import Source, dtype_of
from mconv.convert.sources.unfused import SLAB, Unfused
from mconv.convert.spelling.table import Logical, Stored
from mconv.convert.surgery.made import passed
from mconv.spec import ModelSpec
from mconv.verify.recipes import blend_faults as faults
from mconv.verify.recipes import transplant
from mconv.verify.recipes.again import Wrong

WIDE = 44
"""Bytes that an element of each model takes while it is evaluated: it, and what is made of it in fp64."""
EXPLAINED, TRIED = 20, 3
"""Wrong tensors that are explained, and the first of these, for which every known fault is tried."""


def title(model: SourceModel) -> str:
    """Return the recipe that a manifest keeps, in words. Raises MconvError where a model is gone."""
    return blends.request_of(model.manifest or {}, model.path).title


def again(model: SourceModel) -> "BlendAgain":
    """Return a blend made again. Raises MconvError where a model is gone, or cannot be merged."""
    request = blends.request_of(model.manifest or {}, model.path)
    made = blends.model_of(request, ignore=passed(model))
    assert isinstance(made.source, Blend)
    return BlendAgain(model, made.source, transplant.tokens_of(model, request))


@dataclass(frozen=True, slots=True)
class BlendAgain:
    """A blend, and the recipe that it is judged by."""

    model: SourceModel
    blend: Blend
    tokens: transplant.Tokens | None
    """Where the recipe makes one vocabulary: the tokens of all."""
    merged: Mapping[str, Merged] = field(init=False)
    """What each tensor is merged from, by its Hugging Face name."""

    def __post_init__(self) -> None:
        every = (merged for group in self.blend.tensors_of.values() for merged in group)
        object.__setattr__(self, "merged", {merged.member.key: merged for merged in every})

    @property
    def title(self) -> str:
        return f"{self.blend.recipe.method.title} of {', '.join(self.models)}"

    @property
    def proof(self) -> str:
        return "made anew in fp64, within the rounding of what is stored"

    @property
    def facts(self) -> dict[str, Any]:
        return {"kind": "blend", "method": self.blend.recipe.method.name, "models": list(self.models)}

    @property
    def spec(self) -> ModelSpec:
        return self.blend.spec

    @property
    def tensors(self) -> Sequence[Unfused]:
        return [merged.member for merged in self.merged.values()]

    @property
    def models(self) -> Mapping[str, Source]:
        return {str(name): blends.own_of(source) for name, source in self.blend.sources.items()}

    def inputs(self, tensor: Unfused) -> Mapping[str, Collection[Logical]]:
        return {str(name): [logical] for name, logical in self.merged[tensor.key].inputs}

    def wrong(self, tensor: Unfused) -> Iterator[Wrong]:
        merged, count, largest = self.merged[tensor.key], 0, 0.0
        for expected, found in self._pieces(merged):
            bad = expected.wrong(found)
            if some := int(bad.sum()):
                apart = (found.double().view(bad.shape) - expected.values).abs()[bad]
                count, largest = count + some, max(largest, float(apart.max()))
        if count:
            yield Wrong(name=tensor.key, layer=tensor.logical.layer, elements=count, of=tensor.elements, largest=largest)

    def _pieces(self, merged: Merged) -> Iterator[tuple[Expected, torch.Tensor]]:
        """Yield what is expected of a tensor and what is found: rows by rows where the method looks at no more."""
        merge, member = self.blend.merge(merged), merged.member
        if not self._by_rows(merged):
            yield self.expected(merged), whole(self.model.source, member.stored)
            return
        row, rows = merge.row, member.elements // merge.row
        step = max(1, SLAB // row)
        for first in range(0, rows, step):
            count = min(step, rows - first)
            span, piece = (first * row, (first + count) * row), replace(merge, shape=(count, row))
            inputs = [_run(self.blend.sources[name], member, logical, span) for name, logical in merged.inputs]
            yield self.evaluated(merged, piece, inputs), _run(self.model.source, member, member.logical, span)

    def _has_tokens(self, merged: Merged) -> bool:
        """Return whether a tensor has a row for each token of a vocabulary that the recipe makes."""
        member = merged.member
        return self.tokens is not None and member.row.axes_of(member.logical.leaf).names[0] == "v"

    def memory(self, chosen: Sequence[Unfused]) -> tuple[int, str]:
        return max((self._held(self.merged[tensor.key]), tensor.key) for tensor in chosen)

    def _held(self, merged: Merged) -> int:
        """Return the bytes that judging a tensor takes."""
        most = SLAB if self._by_rows(merged) else merged.member.elements
        return WIDE * len(merged.inputs) * min(most, merged.member.elements)

    def _by_rows(self, merged: Merged) -> bool:
        """Return whether some rows of a tensor can be judged without the others."""
        method, merge = self.blend.recipe.method.name, self.blend.merge(merged)
        return not self._has_tokens(merged) and reference.by_element(method, merge)

    def explained(self, wrong: Sequence[Wrong]) -> list[Wrong]:
        known: dict[str, None] = {}
        found = []
        for at, one in enumerate(wrong[:EXPLAINED]):
            kinds = [*faults.GUESSES] if at < TRIED else [*known]
            kind, why = faults.explain(self._case(self.merged[one.name]), kinds)
            known |= {kind: None} if kind in faults.GUESSES else {}
            found.append(replace(one, kind=kind, why=why))
        return [*found, *wrong[EXPLAINED:]]

    def _case(self, merged: Merged) -> faults.Case:
        inputs, merge = self.inputs_of(merged), self.blend.merge(merged)
        expected, found = self.evaluated(merged, merge, inputs), whole(self.model.source, merged.member.stored)
        return faults.Case(self, merged, merge, inputs, expected, found)

    def besides(self, wrong: Sequence[Wrong]) -> list[str]:
        return []

    # ---- the second evaluation ---------------------------------------------------------------------------------------
    def expected(self, merged: Merged) -> Expected:
        """Return what the recipe makes of a tensor, and how far rounding may be from it."""
        return self.evaluated(merged, self.blend.merge(merged), self.inputs_of(merged))

    def inputs_of(self, merged: Merged) -> list[torch.Tensor]:
        """Return the whole tensors that one is merged from."""
        member = merged.member
        if self.tokens is not None and self._has_tokens(merged):
            base = self.blend.recipe.base_of(self.blend.recipe.slices[0 if member.row.looked_up else -1])
            return transplant.tables(self.tokens, self.blend, merged, base=str(base) if base else None)
        return [whole(self.blend.sources[name], Stored(member.key, logical, member.stored.piece))
                for name, logical in merged.inputs]  # fmt: skip

    def evaluated(self, merged: Merged, merge: Merge, inputs: Sequence[torch.Tensor]) -> Expected:
        """Return what a merge makes of some tensors, as it is stored."""
        return self.stored(merged, reference.evaluate(self.blend.recipe.method.name, merge, inputs))

    def stored(self, merged: Merged, found: Expected) -> Expected:
        """Return what is expected of a tensor once it is rounded as the blend was."""
        (kind,) = self.blend.dtypes(merged.member.logical)
        for dtype in dict.fromkeys((getattr(torch, kind.name), dtype_of(self.model.source, merged.member.logical))):
            found = found.stored_as(dtype)
        return found


def _run(source: Source, member: Unfused, logical: Logical, span: tuple[int, int]) -> torch.Tensor:
    """Return a run of the elements of a Hugging Face tensor."""
    return torch.cat([member.flat(source.pull(logical, box)) for box in member.boxes(*span)])


def whole(source: Source, stored: Stored) -> torch.Tensor:
    """Return a whole Hugging Face tensor."""
    return assemble(source, stored, dtype=dtype_of(source, stored.logical))
