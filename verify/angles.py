"""Principal angles between the leading subspaces of each linear of two checkpoints: how far a finetune has turned them.

The outputs' subspace is spanned by the leading left singular vectors of a weight, the inputs' by the right ones. An angle
of 0 means a direction that both have; 90 degrees, one that the other has nothing of.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from mconv.convert.checkpoint.model import SourceModel
from mconv.convert.extraction import svd
from mconv.convert.formats.mapped import forget
from mconv.convert.peft.lora import LINEARS
from mconv.convert.sources.read import Progress, quiet
from mconv.convert.sources.unfused import Unfused, boxes
from mconv.errors import MconvError, refuse
from mconv.shard.axes import lengths, within
from mconv.verify.diff import Diff, Pair


@dataclass(frozen=True, slots=True)
class Angles:
    """Principal angles in degrees, the smallest first."""

    outputs: list[float]
    inputs: list[float]

    @property
    def largest(self) -> float:
        return max(*self.outputs, *self.inputs)


def linears(pairs: Sequence[Pair], *, count: int) -> list[Pair]:
    """Return the linears of the layers. Raises MconvError if one has fewer than `count` directions."""
    if count < 1:
        raise MconvError(f"--angles is {count}; it is the dimension of the subspaces, at least 1")
    found = [pair for pair in pairs if pair.a.row.kind in LINEARS and pair.a.logical.leaf == "weight"]
    refuse([f"--angles {count}: {pair.key} is {pair.a.matrix[0]} x {pair.a.matrix[1]}, so it has {min(pair.a.matrix)} "
            "directions; ask for fewer" for pair in found if min(pair.a.matrix) < count],
           doing="no angles can be taken", limit=3)  # fmt: skip
    return found


def memory(pairs: Sequence[Pair], *, count: int) -> tuple[int, Pair]:
    """Return the bytes that the largest SVD needs with the subspaces of both sides, and the linear that it is of."""
    sized = [(svd.memory(pair.a.matrix, count) + 16 * count * sum(pair.a.matrix), pair) for pair in pairs]
    return max(sized, key=lambda one: one[0])


def measure(
    a: SourceModel, b: SourceModel, found: Diff, *, count: int, progress: Progress = quiet
) -> Mapping[str, Angles]:
    """Return the angles of every linear, by its key; those that have not changed are not decomposed."""
    out = {}
    for pair in linears(found.shared.pairs, count=count):
        sums = found.tensors[pair.key]
        if not sums.changed:
            out[pair.key] = Angles([0.0] * count, [0.0] * count)
        elif not sums.nonfinite:
            out[pair.key] = between(*(_leading(*side, count) for side in ((a, pair.a), (b, pair.b))))
        progress(pair.a.elements)
        forget()
    return out


def between(one: svd.Leading, two: svd.Leading) -> Angles:
    """Return the principal angles between the subspaces of two matrices."""
    return Angles(_principal(one.left, two.left), _principal(one.right.t(), two.right.t()))


def _principal(one: Float[Tensor, "n k"], two: Float[Tensor, "n k"]) -> list[float]:
    """Return the angles between two subspaces, in degrees: small ones from sines, which cosines cannot tell from 0."""
    overlap = one.t() @ two
    cosines = torch.linalg.svdvals(overlap).clamp(max=1.0)
    sines = torch.linalg.svdvals(two - one @ overlap).clamp(max=1.0).flip(0)
    angles = torch.where(cosines.square() > 0.5, sines.asin(), cosines.acos())
    return [math.degrees(float(x)) for x in angles]


def _leading(model: SourceModel, tensor: Unfused, count: int) -> svd.Leading:
    matrix = torch.empty(lengths(tensor.box), dtype=svd.precision(tensor.matrix))
    for box in boxes(tensor.box):
        matrix[within(box, tensor.box)] = model.source.pull(tensor.logical, box).to(matrix.dtype)
    return svd.leading(matrix.view(tensor.matrix), count)
