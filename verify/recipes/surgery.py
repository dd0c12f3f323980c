"""Results of `mconv layers` and `mconv resize` made again: whole tensors and rows, from what the recipe says alone."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from mconv.convert.checkpoint.model import SourceModel
from mconv.convert.folders import manifest
from mconv.convert.sources.checks import bits, same_bits
from mconv.convert.sources.source import Source
from mconv.convert.sources.unfused import SLAB, Unfused, boxes, unfused
from mconv.convert.spelling.table import Logical
from mconv.convert.surgery import made
from mconv.errors import FormatError
from mconv.shard.axes import Box, lengths
from mconv.spec import ModelSpec
from mconv.verify.recipes import rows
from mconv.verify.recipes.again import Wrong, widest

Recipe = Mapping[str, Any]


def title(model: SourceModel) -> str:
    """Return the recipe that a manifest keeps, in words. Raises MconvError where the base is gone."""
    recipe, places = _recipe(model), made.models_of(model.manifest or {}, model.path)
    return _title(recipe, next(iter(places)).removeprefix(made.MODEL))


def again(model: SourceModel) -> "SurgeryAgain":
    """Return a model made again of its base. Raises MconvError where that is gone or the recipe is damaged."""
    recipe, base = _recipe(model), made.base_of(model)
    table = rows.table(model, base, recipe) if recipe["kind"] == "resize" else None
    return SurgeryAgain(model, base, recipe, _casts(model), table)


def _recipe(model: SourceModel) -> Recipe:
    recipe = (model.manifest or {})[made.KEY].get("recipe")
    if not isinstance(recipe, dict) or recipe.get("kind") not in made.KINDS:
        raise FormatError(f"{model.path}: its mconv.json does not say by which recipe it was made")
    return recipe


def _title(recipe: Recipe, base: str) -> str:
    heads = {True: "head tied", False: "head untied", None: ""}[recipe.get("tied")]
    layers = f"layers {recipe['layers']}" if "layers" in recipe else ""
    vocabulary = f"vocabulary of {recipe['rows']} rows (new ones: {recipe['init']})" if "rows" in recipe else ""
    return f"{base} with {', '.join(part for part in (layers, heads, vocabulary) if part)}"


def _casts(model: SourceModel) -> list[torch.dtype]:
    """Return the dtypes that the result was cast to, when it was made and in conversions since."""
    steps = [one for one in (model.manifest or {}).get("history", []) if isinstance(one.get("detail"), dict)]
    first = max((at for at, one in enumerate(steps) if one.get("step") in made.KINDS), default=0)
    named = [one["detail"]["cast_to"] for one in steps[first:] if "cast_to" in one["detail"]]
    return [getattr(torch, str(name)) for name in named]


@dataclass(frozen=True, slots=True)
class SurgeryAgain:
    """A model made of another one by layers or rows, and the recipe that it is judged by."""

    model: SourceModel
    base: SourceModel
    recipe: Recipe
    casts: Sequence[torch.dtype]
    table: rows.Table | None
    """Where the rows of its vocabulary come from, if that is another one."""

    @property
    def title(self) -> str:
        return _title(self.recipe, next(iter(self.models)))

    @property
    def proof(self) -> str:
        new = "" if self.table is None or not self.table.fresh else ", new rows within rounding of their rule"
        return f"compared with the base's, bit for bit{new}"

    @property
    def facts(self) -> dict[str, Any]:
        return {"kind": self.recipe["kind"], "models": list(self.models)}

    @property
    def layers(self) -> Sequence[int]:
        """The number in the base of each layer."""
        if "layers" not in self.recipe:
            return range(self.base.spec.num_layers)
        pairs = [[int(n) for n in word.split("-")] for word in self.recipe["layers"].split(",")]  # 0-2,1 -> 0, 1, 2, 1
        return [layer for pair in pairs for layer in range(pair[0], pair[-1] + 1)]

    @property
    def spec(self) -> ModelSpec:
        tied, count = self.recipe.get("tied"), self.recipe.get("rows", self.base.spec.vocab_size)
        own = self.base.spec.tied_embeddings if tied is None else tied
        return replace(self.base.spec, num_layers=len(self.layers), tied_embeddings=own, vocab_size=count)

    @property
    def tensors(self) -> Sequence[Unfused]:
        return list(unfused(self.model.family, self.model.spec).values())

    @property
    def models(self) -> Mapping[str, Source]:
        return dict.fromkeys(manifest.sources(self.model.manifest), self.base.source)

    def inputs(self, tensor: Unfused) -> Mapping[str, Collection[Logical]]:
        return {name: self._olds(tensor.logical) for name in self.models}

    def _olds(self, logical: Logical) -> list[Logical]:
        """Return the tensors of the base that one of the result must equal: one, of a head that was tied both."""
        family, tied = self.base.family, self.recipe.get("tied")
        if logical.layer is not None:
            return [replace(logical, layer=self.layers[logical.layer])]
        if logical == family.head and tied is False:
            return [family.embedding]
        return [logical, family.head] if logical == family.embedding and tied else [logical]

    def memory(self, chosen: Sequence[Unfused]) -> tuple[int, str]:
        return 4 * 8 * SLAB, chosen[0].key

    # ---- what is wrong -----------------------------------------------------------------------------------------------
    def wrong(self, tensor: Unfused) -> Iterator[Wrong]:
        if len(self.layers) != self.model.spec.num_layers or self.spec.vocab_size != self.model.spec.vocab_size:
            return  # another architecture, which is said beside the tensors
        if self.table is not None and self.model.family.axes(tensor.logical).names[0] == "v":
            yield from rows.wrong(self.table, self.model, self.base, tensor, self.casts)
            return
        for old in self._olds(tensor.logical):
            yield from self._apart(tensor, old)

    def _apart(self, tensor: Unfused, old: Logical) -> Iterator[Wrong]:
        """Yield how far a tensor is from one of the base, if it is not the same bits."""
        count, largest = 0, 0.0
        for box in boxes(tensor.box):
            found, expected = self.model.source.pull(tensor.logical, box), self.expected(old, box)
            if not same_bits(found, expected):
                count += int((bits(found) != bits(expected)).count_nonzero())
                largest = max(largest, widest(found, expected))
        if count:
            where = tensor.logical.layer
            yield Wrong(name=tensor.key, layer=where, elements=count, of=tensor.elements, largest=largest,
                        **self._instead(tensor, old))  # fmt: skip

    def expected(self, old: Logical, box: Box) -> torch.Tensor:
        """Return a box of a tensor of the base, cast as the result was; a bias that the base lacks is zero."""
        (kind, *_) = self.model.source.dtypes(old) if old in self.model.source.tensors() else [self.model.dtype]
        own = getattr(torch, kind.name)
        if old not in self.base.source.tensors():
            return torch.zeros(lengths(box), dtype=own)
        found = self.base.source.pull(old, box)
        for dtype in (*self.casts, own):
            found = found.to(dtype)
        return found

    def _instead(self, tensor: Unfused, old: Logical) -> dict[str, Any]:
        """Return what a wrong tensor is instead, as fields of `Wrong`: another layer's, or another one of its layer."""
        if old.layer is None:
            return {}
        for layer in range(self.base.spec.num_layers):
            if layer != old.layer and self._is(tensor, replace(old, layer=layer), tensor.box):
                there = f"layer {tensor.logical.layer} is layer {layer} of {self.base.name}"
                return {"kind": "layer", "found": layer, "why": f"{there}, where the recipe takes {old.layer}"}
        for other in unfused(self.base.family, self.base.spec).values():
            like = other.logical.layer == old.layer and other.dims == tensor.dims
            if like and self._is(tensor, other.logical, other.box):
                return {"kind": "tensor", "why": f"it is {other.key} of {self.base.name}"}
        return {}

    def _is(self, tensor: Unfused, old: Logical, place: Box) -> bool:
        """Return whether a tensor is the same bits as a box of one of the base."""
        pairs = zip(boxes(tensor.box), boxes(place), strict=True)
        return all(same_bits(self.model.source.pull(tensor.logical, one), self.expected(old, two)) for one, two in pairs)

    def explained(self, wrong: Sequence[Wrong]) -> list[Wrong]:
        return list(wrong)

    def besides(self, wrong: Sequence[Wrong]) -> list[str]:
        found = {one.layer: one.found for one in wrong if one.kind == "layer" and one.layer is not None}
        swapped = [(i, j) for i in found for j in found
                   if i < j and found[i] == self.layers[j] and found[j] == self.layers[i]]  # fmt: skip
        lines = [f"layers {i} and {j} are exchanged" for i, j in swapped]
        if self.table is None:
            return lines
        names = {one.name for one in wrong}
        if self.model.family.head_key in names and self.model.family.embedding_key not in names:
            lines.append("the head was not resized like the embedding, whose rows are those of the recipe")
        return lines + self.table.problems
