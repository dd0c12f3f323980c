"""A comparison of logits as every rank receives it."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import torch

from mconv.convert.checkpoint.model import SourceModel
from mconv.shard.stages import EVEN, Uneven
from mconv.train.megatron.parallel import Parallel
from mconv.verify import probes
from mconv.verify.checkpoints import Hints

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """Two checkpoints, and how to run and compare them. Plain values, which JSON carries to the ranks."""

    a: str
    """Path of the reference."""
    b: str
    """Path of the candidate."""
    a_hints: Hints = field(default_factory=dict)
    b_hints: Hints = field(default_factory=dict)
    tp: int = 1
    pp: int = 1
    uneven: Uneven = EVEN
    sequence_parallel: bool = False
    dtype: Literal["fp32", "bf16", "fp16"] = "fp32"
    streamed: bool = False
    """Hold one layer in memory at a time."""
    threads: int | None = None
    """Threads of the one rank that works while the others wait; None keeps its number."""
    length: int | None = None
    """Positions of a row; None chooses by the models."""
    batch: int = 3
    seed: int = 1234
    generate: int = 0
    """Number of greedy tokens to compare after each prompt."""
    digests: dict[str, Any] | None = None
    """Comparison of the tensors, as `digests.Report.to_dict` gives it; None if they were not compared."""
    diagnose: bool = True
    """Look for the fault if the comparison fails."""

    @property
    def parallel(self) -> Parallel:
        """Layout of a Megatron side."""
        return Parallel(tp=self.tp, pp=self.pp, uneven=self.uneven, sequence_parallel=self.sequence_parallel)

    @property
    def torch_dtype(self) -> torch.dtype:
        """Dtype of the computation."""
        return DTYPES[self.dtype]

    def row_length(self, a: SourceModel, b: SourceModel) -> int:
        """Return the number of positions of each row of the probe."""
        return probes.length_for(a.spec, b.spec, length=self.length, parameters=a.parameters, batch=self.batch)

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Request":
        """Return the request that `to_dict` wrote."""
        return cls(**{**values, "uneven": Uneven(**values.get("uneven", {}))})
