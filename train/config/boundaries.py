"""What happens where one document ends and the next begins within a sample."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from mconv.train.config import rules


@dataclass(frozen=True, kw_only=True)
class Boundaries:
    """Document boundaries: documents that share a sample."""

    reset_position_ids: bool = False
    """Count positions from 0 in each document of a sample, instead of through the whole sample."""
    reset_attention_mask: bool = False
    """Keep the documents of a sample apart: no token attends to another document."""
    eod_mask_loss: bool = False
    """Leave out the loss after a document's last token, where the next token belongs to the next document."""
    eod_token: int | None = None
    """Id of the token that ends a document, for data whose record does not say it."""

    @staticmethod
    def problems(config: Any) -> Iterator[str]:
        """Yield the broken rules of this section."""
        yield from rules.not_negative(config, "eod_token")
        asked = [name for name in RESETS if getattr(config, name)]
        if config.eod_token is not None and not asked:
            yield f"eod_token is {config.eod_token}, but none of {', '.join(RESETS)} needs it"
        if asked and config.data_type == "instruction":
            yield f"{asked[0]} is for running text; packing keeps conversations apart by itself, and their loss by role"


RESETS = ("reset_position_ids", "reset_attention_mask", "eod_mask_loss")
