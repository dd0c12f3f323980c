"""A model with its layers in another order, and one whose head is tied to its embedding or is not."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from mconv.convert.formats.dtype import DType
from mconv.convert.sources.source import Derived, Slab
from mconv.convert.sources.stored import primary
from mconv.convert.spelling.table import Logical, Stored
from mconv.shard.axes import Box
from mconv.spec import ModelSpec

if TYPE_CHECKING:
    import torch

    from mconv.convert.sources.scratch import Scratch


@dataclass(frozen=True, slots=True)
class Renamed(Derived):
    """A source whose tensors are whole tensors of its base, under other names: what Renumbered and Headed share."""

    origins: Mapping[Logical, Logical] = field(init=False)
    """Each tensor, and the base's tensor that it is."""

    def tensors(self) -> Collection[Logical]:
        return self.origins.keys()

    def dtypes(self, tensor: Logical) -> Collection[DType]:
        return self.base.dtypes(self.origins[tensor])

    def pieces(self, tensor: Logical) -> Sequence[Stored]:
        return self.base.pieces(self.origins[tensor])

    def pull(self, tensor: Logical, box: Box, scratch: "Scratch | None" = None) -> "torch.Tensor":
        return self.base.pull(self.origins[tensor], box, scratch)

    def conflicts(self, tensor: Logical, slab: Slab) -> Iterable[tuple[Stored, Stored]]:
        return self.base.conflicts(self.origins[tensor], slab)


@dataclass(frozen=True, slots=True)
class Renumbered(Renamed):
    """The layers of a base in another order; a layer may be left out, or be there several times."""

    layers: tuple[int, ...]
    """The number in the base of each layer."""

    def __post_init__(self) -> None:
        places: dict[int | None, list[int | None]] = {None: [None]}
        for new, old in enumerate(self.layers):
            places.setdefault(old, []).append(new)
        pairs = ((replace(old, layer=new), old) for old in self.base.tensors() for new in places.get(old.layer, ()))
        object.__setattr__(self, "origins", dict(pairs))

    @property
    def spec(self) -> ModelSpec:
        return replace(self.base.spec, num_layers=len(self.layers))

    def fingerprint(self) -> list[Any]:
        return [*self.base.fingerprint(), "layers", *self.layers]


@dataclass(frozen=True, slots=True)
class Headed(Renamed):
    """A base whose head is made a copy of its embedding, or is left out because it equals the embedding."""

    tied: bool

    def __post_init__(self) -> None:
        head, same = self.family.head, {tensor: tensor for tensor in self.base.tensors()}
        same.pop(head, None)
        object.__setattr__(self, "origins", same if self.tied else {**same, head: self.family.embedding})

    @property
    def spec(self) -> ModelSpec:
        return replace(self.base.spec, tied_embeddings=self.tied)

    def pieces(self, tensor: Logical) -> Sequence[Stored]:
        """Return the stored tensors of a tensor, without the copy of an embedding that is a head of its own now."""
        return primary(self.base.pieces(self.origins[tensor]))

    def fingerprint(self) -> list[Any]:
        return [*self.base.fingerprint(), "tied" if self.tied else "untied"]
