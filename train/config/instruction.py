"""How conversations are trained on."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from mconv.train.config import rules


@dataclass(frozen=True, kw_only=True)
class Instruction:
    """Instruction data: the loss on conversations, and how they fill a row."""

    scalar_loss_mask: float = 0.0
    """Loss weight of tokens outside answers; tokens of answers have 1."""
    packing: bool = False
    """Pack several conversations into one row of seq_length; none of them attends to another."""
    variable_seq_lengths: bool = False
    """Pad rows to the longest of their micro batch (in steps of 16) instead of seq_length."""

    @staticmethod
    def problems(config: Any) -> Iterator[str]:
        """Yield the broken rules of this section."""
        yield from rules.each(config, "scalar_loss_mask", "from 0 to 1, which answers have", lambda part: 0 <= part <= 1)
        for name in ("scalar_loss_mask", "packing", "variable_seq_lengths"):
            if getattr(config, name) and config.data_type != "instruction":
                yield f"{name} is for data_type instruction; data_type is {config.data_type}"
