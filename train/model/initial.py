"""Weights from nothing: each logical tensor is drawn whole, from a seed that its name makes, and cut like any other.

So they are the same at every layout, and so are a run's losses. megatron-core's own differ from rank to rank.
"""

import hashlib
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mconv.convert.checkpoint.model import SourceModel
from mconv.convert.families import FAMILIES
from mconv.convert.formats.dtype import FLOAT32, DType
from mconv.convert.sources.source import Slab, dims_of
from mconv.convert.spelling.table import Family, Logical, Stored
from mconv.shard.axes import Box
from mconv.spec import ModelSpec

if TYPE_CHECKING:
    import torch

    from mconv.convert.sources.scratch import Scratch


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawn:
    """A source whose tensors lie nowhere: each is drawn when it is read, in fp32, the same values each time.

    Megatron's rule: norms are 1, biases 0, all else is normal around 0, and less wide where it is added to the hidden
    states.
    """

    spec: ModelSpec
    std: float
    seed: int
    label: str
    logicals: Mapping[Logical, None] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "logicals", dict.fromkeys(self.family.logicals(self.spec)))

    @property
    def family(self) -> Family:
        return FAMILIES[self.spec.family]

    def tensors(self) -> Collection[Logical]:
        return self.logicals.keys()

    def dtypes(self, tensor: Logical) -> Collection[DType]:
        return (FLOAT32,)

    def pieces(self, tensor: Logical) -> Sequence[Stored]:
        return ()

    def pull(self, tensor: Logical, box: Box, scratch: "Scratch | None" = None) -> "torch.Tensor":
        return self.whole(tensor).view(dims_of(self, tensor))[tuple(slice(*ends) for ends in box)]

    def conflicts(self, tensor: Logical, slab: Slab) -> tuple[()]:
        return ()

    def files(self) -> Collection[Path]:
        return ()

    def fingerprint(self) -> list[Any]:
        return ["drawn", self.seed, self.std]

    def whole(self, tensor: Logical) -> "torch.Tensor":
        """Return a tensor in the shape of a parameter, its axes fused."""
        from mconv.train.model import drawing

        shape, kind = self.family.axes(tensor).shape(self.spec.sizes), self.family.row(tensor.row).kind
        if tensor.leaf == "bias" or kind == "norm":
            return drawing.constant(shape, float(tensor.leaf == "weight"), FLOAT32)
        seed = int.from_bytes(hashlib.sha256(f"{self.seed}/{tensor}".encode()).digest()[:8], "big") >> 1
        narrow = math.sqrt(2 * self.spec.num_layers) if kind == "row" else 1.0
        return drawing.normal(shape, seed, self.std / narrow)


def parameters(spec: ModelSpec) -> int:
    """Return the number of a model's parameters, without padding and copies."""
    return blueprint(spec, std=1.0, seed=0, path=Path()).parameters


def blueprint(spec: ModelSpec, *, std: float, seed: int, path: Path) -> SourceModel:
    """Return a model of `spec` whose weights are drawn when they are read.

    `path` lends it its name and, where it is a folder, its config and tokenizer files.
    """
    return SourceModel(source=Drawn(spec=spec, std=std, seed=seed, label=str(path)), derived=True, path=path, format="hf")
