"""How conversations are trained on."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from mconv.train.config import rules


@dataclass(frozen=True, kw_only=True)
class Instruction:
    """Instruction data."""

    scalar_loss_mask: float = 0.0
    """What the loss of a token that is no answer counts, beside 1 for one that is."""
    packing: bool = False
    """Put several conversations into a row of `seq_length`, none of which sees another."""
    variable_seq_lengths: bool = False
    """Pad rows to the longest of their micro batch, in steps of 16, and not to `seq_length`."""

    @staticmethod
    def problems(config: Any) -> Iterator[str]:
        """Broken rules of this section."""
        yield from rules.each(config, "scalar_loss_mask", "from 0 to 1, which answers have", lambda part: 0 <= part <= 1)
        for name in ("scalar_loss_mask", "packing", "variable_seq_lengths"):
            if getattr(config, name) and config.data_type != "instruction":
                yield f"{name} is for data_type instruction; data_type is {config.data_type}"
