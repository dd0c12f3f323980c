"""What a run reads."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from mconv.train.config import rules


@dataclass(frozen=True, kw_only=True)
class Data:
    """Prefixes, shares, and the length of a sample."""

    data: list[str] | None = None
    """Prefixes of .bin/.idx files, as `mconv data tokenize` makes them."""
    mock_data: bool = False
    """Train on Megatron-LM's mock data, sample for sample, in place of `data`: rising numbers, to try a machine with."""
    data_weights: list[float] | None = None
    """Share of each prefix in the blend, in any unit; by their sizes if not given."""
    split: str = "100,0,0"
    """Shares of the data for training, validation and test."""
    data_cache: str | None = None
    """Folder for the index files of the datasets; `data-cache` under `save`, or beside the first prefix."""
    seq_length: int | None = None
    """Tokens in one sample; the model's max_position_embeddings if not given."""

    @staticmethod
    def problems(config: Any) -> Iterator[str]:
        """Broken rules of this section."""
        yield from rules.at_least_1(config, "seq_length")
        yield from rules.each(config, "data", "at least one prefix", bool)
        yield from rules.each(
            config, "data_weights", "positive numbers", lambda weights: all(0 < x < math.inf for x in weights)
        )
        if not config.data and not config.mock_data:
            yield "data is not set: prefixes of .bin/.idx files (mconv data tokenize makes them), or mock_data"
        if config.data and config.mock_data:
            yield "data and mock_data are both set; give one of them"
        if config.data_weights is not None and len(config.data_weights) != len(config.data or []):
            yield f"data_weights has {len(config.data_weights)} weights for {len(config.data or [])} prefixes in data"
        yield from rules.each(
            config, "split", "three shares such as 98,1,1, the first above 0",
            lambda split: len(shares(split)) == 3 and min(shares(split)) >= 0 < shares(split)[0],
        )  # fmt: skip


def shares(split: str) -> list[float]:
    """The numbers of a split; three zeros if they are none."""
    try:
        found = [float(share) for share in split.split(",")]
        return found if all(math.isfinite(share) for share in found) else [0.0, 0.0, 0.0]
    except ValueError:
        return [0.0, 0.0, 0.0]
