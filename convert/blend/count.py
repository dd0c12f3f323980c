"""Progress of the passes that a tensor's statistics take."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mconv.convert.blend.slabs import Slab


@dataclass(slots=True)
class Count:
    """Progress of the passes over a tensor, whose number is not known before: each takes half of what is left."""

    elements: int
    left: float
    """Bytes that were not told of yet."""
    tell: Callable[[int], None]

    def told(self, slabs: Iterator["Slab"]) -> Iterator["Slab"]:
        """Yield the slabs of a pass."""
        share = self.left / 2
        for slab in slabs:
            yield slab
            self._advance(share * len(slab.tensors[0]) / self.elements)

    def finish(self) -> None:
        """Tell of what is left: there are no more passes."""
        self._advance(self.left)

    def _advance(self, nbytes: float) -> None:
        before, self.left = round(self.left), self.left - nbytes
        self.tell(before - round(self.left))
