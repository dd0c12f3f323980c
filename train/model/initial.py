"""Weights from nothing: each logical tensor is drawn whole, from a seed that its name makes, and cut like any other.

So they are the same at every layout, and so are a run's losses. megatron-core's own differ from rank to rank.
"""

import hashlib
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mconv.convert.checkpoint import Checkpoint
from mconv.convert.families import FAMILIES
from mconv.convert.formats.dtype import FLOAT32
from mconv.convert.formats.tensors import Located
from mconv.convert.table import Stored
from mconv.shard.pattern import piece
from mconv.spec import ModelSpec

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class Drawn(Located):
    """A tensor that lies nowhere: normal around 0, or a constant where `std` is None."""

    seed: int
    std: float | None
    constant: float = 0.0

    def load(self) -> "torch.Tensor":
        """Draw it: the same values each time."""
        from mconv.train.model import drawing

        if self.std is None:
            return drawing.constant(self.shape, self.constant, self.dtype)
        return drawing.normal(self.shape, self.seed, self.std)


def parameters(spec: ModelSpec) -> int:
    """Return the number of a model's parameters, without padding and copies."""
    return blueprint(spec, std=1.0, seed=0, path=Path()).parameters


def blueprint(spec: ModelSpec, *, std: float, seed: int, path: Path) -> Checkpoint:
    """Return a checkpoint of `spec`, as if opened at `path`, whose tensors are drawn in fp32 when they are read.

    `path` lends it its name and, where it is a folder, its config and tokenizer files.
    """
    family = FAMILIES[spec.family]
    logicals = family.logicals(spec)
    stored = [Stored(str(x), x, piece(family.axes(x), spec.sizes)) for x in logicals]
    located: dict[str, Located] = {one.key: _drawn(one, spec, std=std, seed=seed) for one in stored}
    return Checkpoint(
        path=path, format="hf", dialect=None, family=family, spec=spec, layout=None, iteration=None, stored=stored,
        located=located, manifest=None,
    )  # fmt: skip


def _drawn(stored: Stored, spec: ModelSpec, *, std: float, seed: int) -> Drawn:
    """Return a tensor to draw by Megatron's rule: norms 1, biases 0, else normal, narrower if added to hidden states."""
    x, shape = stored.logical, stored.piece.shape
    kind = FAMILIES[spec.family].row(x.row).kind
    own = int.from_bytes(hashlib.sha256(f"{seed}/{x}".encode()).digest()[:8], "big") >> 1
    where = (Path("drawn"), 0, FLOAT32, shape, own)
    if x.leaf == "bias" or kind == "norm":
        return Drawn(*where, std=None, constant=float(x.leaf == "weight"))
    return Drawn(*where, std=std / math.sqrt(2 * spec.num_layers) if kind == "row" else std)
