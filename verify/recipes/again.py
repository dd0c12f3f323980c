"""What a judgement by a recipe needs of each kind of recipe, and what it finds."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch

from mconv.convert.checkpoint.model import SourceModel
from mconv.convert.folders import manifest
from mconv.convert.sources.read import Progress, digests
from mconv.convert.sources.source import Source, nbytes_of
from mconv.convert.sources.unfused import Unfused
from mconv.convert.spelling.table import Logical
from mconv.errors import FormatError
from mconv.spec import ModelSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class Wrong:
    """A Hugging Face tensor that is not what the recipe makes."""

    name: str
    elements: int
    """How many of its elements are wrong."""
    of: int
    largest: float
    """The largest distance from what the recipe makes."""
    layer: int | None = None
    kind: str = ""
    """The kind of fault, where one explains it: `layer`, `rows`, `scale`, `weights`, ..."""
    why: str = ""
    """What the tensor is instead, in words."""
    found: int | None = None
    """Of the kind `layer`: the layer that stands in its place."""

    def __str__(self) -> str:
        counts = f"{self.elements:,} of {self.of:,} elements are wrong, at most {self.largest:.3g} apart"
        return f"{self.name}: {counts}" + f"; {self.why}" * bool(self.why)


@runtime_checkable
class Again(Protocol):
    """A model made again by its recipe."""

    @property
    def title(self) -> str:
        """The recipe in words: TIES of a, b."""

    @property
    def proof(self) -> str:
        """How tensors are compared, in words."""

    @property
    def facts(self) -> dict[str, Any]:
        """What a report says of the recipe."""

    @property
    def spec(self) -> ModelSpec:
        """The architecture that the recipe makes."""

    @property
    def tensors(self) -> Sequence[Unfused]:
        """The tensors of the result."""

    @property
    def models(self) -> Mapping[str, Source]:
        """The models that it is made of, by their names in the manifest."""

    def inputs(self, tensor: Unfused) -> Mapping[str, Collection[Logical]]:
        """Return the tensors of each model that decide one of the result."""

    def memory(self, chosen: Sequence[Unfused]) -> tuple[int, str]:
        """Return about how many bytes judging takes at once, and the tensor that takes them."""

    def wrong(self, tensor: Unfused) -> Iterator[Wrong]:
        """Yield what is wrong with a tensor, if something is."""

    def explained(self, wrong: Sequence[Wrong]) -> list[Wrong]:
        """Return wrong tensors with the kind of fault and what they are instead, where a known fault explains them."""

    def besides(self, wrong: Sequence[Wrong]) -> list[str]:
        """Return what is wrong beside single tensors, in sentences."""


def used(again: Again, chosen: Sequence[Unfused]) -> dict[str, set[str]]:
    """Return the names of the tensors of each model that decide the chosen ones."""
    found: dict[str, set[str]] = {name: set() for name in again.models}
    for tensor in chosen:
        for name, logicals in again.inputs(tensor).items():
            found[name].update(map(str, logicals))
    return found


def nbytes(again: Again, model: SourceModel, chosen: Sequence[Unfused]) -> int:
    """Return the bytes that a judgement reads: of the models to hash them, and of the result."""
    hashed = sum(
        nbytes_of(again.models[name], logical)
        for name, names in used(again, chosen).items()
        for logical in again.models[name].tensors() if str(logical) in names
    )  # fmt: skip
    return hashed + sum(size(model, tensor) for tensor in chosen)


def size(model: SourceModel, tensor: Unfused) -> int:
    """Return the bytes of a tensor of the result."""
    return tensor.elements * max((kind.itemsize for kind in model.source.dtypes(tensor.logical)), default=0)


def check_models(again: Again, model: SourceModel, chosen: Sequence[Unfused], *, progress: Progress) -> None:
    """Raise FormatError where what is read of a model is not what the result was made of."""
    told = manifest.sources(model.manifest)
    for name, names in used(again, chosen).items():
        known, source = told.get(name, {}).get("digests", {}), again.models[name]
        found = digests(source, allow_nonfinite=True, only=names, progress=progress).stored if names else {}
        if changed := [tensor for tensor, digest in found.items() if known.get(tensor) != digest]:
            raise FormatError(
                f"{source.label}: {len(changed)} tensors ({', '.join(changed[:5])}) have changed since {model.path} was "
                f"made of them; restore it, or make {model.name} again"
            )


def widest(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Return the largest difference of two tensors."""
    return float((found.double() - expected.double()).abs().max())
