"""Where a run begins."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from mconv.train.config import rules


@dataclass(frozen=True, kw_only=True)
class Start:
    """Start: the checkpoint to load, its vocabulary, and the seed."""

    load: str | None = None
    """Checkpoint to take the weights from: a Megatron checkpoint of any layout, or a Hugging Face folder. Not used with
    init random."""
    make_vocab_size_divisible_by: int = 128
    """Pad the vocabulary to a multiple of this times tp, unless the checkpoint is already padded."""
    vocab_size: int | None = None
    """True vocabulary size, for checkpoints that do not record it and for models from scratch."""
    ignore_arg: list[str] | None = None
    """Args of the checkpoint in load that no table claims and that may be ignored."""
    ignore_config_key: list[str] | None = None
    """Keys of the config.json in load that no table claims and that may be ignored."""
    seed: int = 1234
    """Seed of the data order, of random weights and of dropout."""

    @staticmethod
    def problems(config: Any) -> Iterator[str]:
        """Yield the broken rules of this section."""
        yield from rules.at_least_1(config, "make_vocab_size_divisible_by vocab_size")
        yield from rules.each(config, "seed", "0 or more and less than 2**32", lambda seed: 0 <= seed < 1 << 32)
