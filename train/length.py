"""How many samples each step takes and how many steps a run has, by megatron-core's calculator."""

from dataclasses import dataclass
from typing import Any

from mconv.train.config import TrainConfig
from mconv.train.megatron.imports import ConstantNumMicroBatchesCalculator, RampupBatchsizeNumMicroBatchesCalculator


@dataclass(frozen=True, slots=True)
class Length:
    """A whole run."""

    iterations: int
    """Optimizer steps."""
    samples: int
    """Samples that are asked of the data, which the last step may not quite use up."""


def batch_size(config: TrainConfig, consumed: int) -> int:
    """Samples of the step that begins at sample `consumed`."""
    return _at(_calculator(config), consumed)


def length(config: TrainConfig) -> Length:
    """Steps and samples of a run; a last batch that is not full is left out, as Megatron-LM does."""
    if config.train_samples is None:
        iterations = config.train_iters or 0
        return Length(iterations, iterations * config.global_batch_size)
    steps = consumed = 0
    if config.rampup_batch_size:
        calculator = _calculator(config)
        while consumed <= min(config.rampup_batch_size[2], config.train_samples):
            consumed += _at(calculator, consumed)
            steps += 1
    left = max(0, config.train_samples - consumed)
    return Length(steps + left // config.global_batch_size, max(config.train_samples, consumed))


def _calculator(config: TrainConfig) -> Any:
    """megatron-core's own, counting micro batches of one sample on one replica: sizes do not depend on the layout."""
    one: dict[str, Any] = {"micro_batch_size": 1, "data_parallel_size": 1, "decrease_batch_size_if_needed": False}
    if not config.rampup_batch_size:
        return ConstantNumMicroBatchesCalculator(config.global_batch_size, rank=-1, **one)
    first, increment, samples = config.rampup_batch_size
    return RampupBatchsizeNumMicroBatchesCalculator(
        config.global_batch_size, rank=-1, start_global_batch_size=first, batch_size_increment=increment,
        ramup_samples=samples, **one,
    )  # fmt: skip


def _at(calculator: Any, consumed: int) -> int:
    calculator.update(consumed, consistency_check=False)
    return int(calculator.get_current_global_batch_size())
