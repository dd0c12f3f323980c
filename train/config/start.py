"""Where a run begins."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from mconv.train.config import rules


@dataclass(frozen=True, kw_only=True)
class Start:
    """The model and its vocabulary."""

    load: str | None = None
    """Where weights come from, unless `init` is random: a Megatron checkpoint of any layout or a Hugging Face folder."""
    make_vocab_size_divisible_by: int = 128
    """The vocabulary is padded to a multiple of this times tp, unless the checkpoint is padded already."""
    vocab_size: int | None = None
    """The true vocabulary size: for checkpoints that do not know it, and of a model from scratch."""
    ignore_arg: list[str] | None = None
    """Args of the checkpoint at `load` that no table claims and that may be passed over."""
    ignore_config_key: list[str] | None = None
    """Keys of a config.json at `load` that no table claims and that may be passed over."""
    seed: int = 1234
    """Seed of the data order, of random weights and of every random generator."""

    @staticmethod
    def problems(config: Any) -> Iterator[str]:
        """Broken rules of this section."""
        yield from rules.at_least_1(config, "make_vocab_size_divisible_by vocab_size")
        yield from rules.each(config, "seed", "0 or more and less than 2**32", lambda seed: 0 <= seed < 1 << 32)
