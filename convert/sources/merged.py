"""A base merged with a LoRA adapter: W + scale * B A, box by box as it is read."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mconv.convert.sources.source import Derived
from mconv.convert.spelling.table import Logical
from mconv.shard.axes import Box

if TYPE_CHECKING:
    import torch

    from mconv.convert.peft.adapter import Adapter
    from mconv.convert.sources.scratch import Scratch


@dataclass(frozen=True, slots=True)
class LoraMerged(Derived):
    """The tensors of a base, each with what an adapter adds to it or puts in its place."""

    adapter: "Adapter"

    def pull(self, tensor: Logical, box: Box, scratch: "Scratch | None" = None) -> "torch.Tensor":
        return self.adapter.merged(tensor, box, self.base.pull(tensor, box, scratch))

    def fingerprint(self) -> list[Any]:
        return [*self.base.fingerprint(), self.adapter.digest()]
