"""How a run is spread over ranks."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from mconv.train.config import rules


@dataclass(frozen=True, kw_only=True)
class Parallelism:
    """Ranks, stages, replicas."""

    tp: int = 1
    """Ranks that share each matrix (tensor parallel)."""
    pp: int = 1
    """Stages that share the layers (pipeline parallel)."""
    sequence_parallel: bool = False
    """Share the positions among the tensor-parallel ranks too, between the matrices."""
    nproc_per_node: int | None = None
    """Ranks to start on this machine; tp * pp if not given. More is data parallel. Not used under torchrun."""
    distributed_optimizer: bool = False
    """Share the optimizer's state among the data-parallel replicas."""

    @staticmethod
    def problems(config: Any) -> Iterator[str]:
        """Broken rules of this section."""
        yield from rules.at_least_1(config, "tp pp nproc_per_node")
