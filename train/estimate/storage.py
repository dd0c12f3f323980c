"""Bytes that a run writes: one checkpoint with its optimizer state, and how many checkpoints stay."""

from collections.abc import Iterable
from dataclasses import dataclass

from mconv.train.config import TrainConfig
from mconv.train.estimate.activations import FP32

OVERHEAD = 256 << 10
"""Bytes of random states, index and headers in a small checkpoint, as measured: 150 to 260 KiB."""


def checkpoint_bytes(config: TrainConfig, *, trained: int, weights: int) -> int:
    """Return the bytes of one checkpoint: of its `weights`, and of the optimizer state of `trained` parameters.

    Main weights in fp32 are saved beside weights in half precision, and by the distributed optimizer in any case.
    """
    main = config.bf16 or config.fp16 or config.distributed_optimizer
    moments = 2 if config.optimizer == "adam" else 1
    return weights + trained * FP32 * (moments + bool(main)) + OVERHEAD


@dataclass(frozen=True, slots=True)
class Keep:
    """The policy of which checkpoints stay."""

    last: int | None = None
    """Number of the newest checkpoints that stay; all if None."""
    every: int | None = None
    """Checkpoints at multiples of this iteration stay, too."""

    def expired(self, mine: Iterable[int]) -> list[int]:
        """Return those of a run's iterations, the oldest first, that are not to be kept."""
        old = sorted(mine)[: -self.last] if self.last else []
        return [iteration for iteration in old if not (self.every and iteration % self.every == 0)]


def saved(config: TrainConfig, last: int, *, after: int = 0) -> list[int]:
    """Return the iterations after one that are saved until the `last`: by the interval, and the last one."""
    step = config.save_interval or last
    regular = list(range((after // step + 1) * step, last + 1, step))
    return regular if regular[-1:] == [last] or last <= after else [*regular, last]


def kept(config: TrainConfig, iterations: int | None) -> int | None:
    """Return how many checkpoints a run leaves; None where its length is not known."""
    if iterations is None:
        return None
    all_of_them = saved(config, iterations)
    return len(all_of_them) - len(Keep(config.keep_last, config.keep_every).expired(all_of_them))
