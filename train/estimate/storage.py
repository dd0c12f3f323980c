"""Bytes that a run writes: one checkpoint with its optimizer state, and one export."""

from mconv.train.config import TrainConfig
from mconv.train.estimate.activations import FP32

BESIDE = 256 << 10
"""Bytes of random states, index and headers in a small checkpoint, as measured: 150 to 260 KiB."""


def checkpoint_bytes(config: TrainConfig, *, trained: int, weights: int) -> int:
    """Return the bytes of one checkpoint: of its `weights`, and of the optimizer state of `trained` parameters.

    Main weights in fp32 are saved beside weights in half precision, and by the distributed optimizer in any case.
    """
    main = config.bf16 or config.fp16 or config.distributed_optimizer
    moments = 2 if config.optimizer == "adam" else 1
    return weights + trained * FP32 * (moments + bool(main)) + BESIDE


def kept(config: TrainConfig, iterations: int | None) -> int | None:
    """Return how many checkpoints a run leaves; None where its length is not known."""
    if iterations is None:
        return None
    every = config.save_interval or iterations
    saved = sorted({*range(every, iterations + 1, every), iterations})
    old = saved[: -config.keep_last] if config.keep_last else []
    return len(saved) - sum(not (config.keep_every and iteration % config.keep_every == 0) for iteration in old)
