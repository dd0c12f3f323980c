"""All options of `mconv train`: one flat dataclass of sections, read from YAML, the environment and flags."""

from dataclasses import dataclass

from mconv.errors import ConfigError, refuse
from mconv.train.config.checkpoints import Checkpoints, Hooks, Stops
from mconv.train.config.compute import Attention, Precision, Recompute
from mconv.train.config.data import Boundaries, Data, Instruction
from mconv.train.config.length import Length
from mconv.train.config.model import Model, Start
from mconv.train.config.monitoring import Evaluation, Guards, Logs, Profiling
from mconv.train.config.optimizer import Optimizer, Schedule
from mconv.train.config.parallelism import Parallelism
from mconv.train.config.trainable import Lora, Trained

SECTIONS = (
    Start, Model, Data, Boundaries, Instruction, Parallelism, Recompute, Length, Schedule, Optimizer, Precision,
    Attention, Trained, Lora, Checkpoints, Hooks, Stops, Evaluation, Logs, Profiling, Guards,
)  # fmt: skip
"""Sections in the order of `mconv train --help`: each is a group of fields and the rules that they must keep."""


@dataclass(frozen=True, kw_only=True)
class TrainConfig(
    Guards, Profiling, Logs, Evaluation, Stops, Hooks, Checkpoints, Lora, Trained, Attention, Precision, Optimizer,
    Schedule, Length, Recompute, Parallelism, Instruction, Boundaries, Data, Model, Start,
):  # fmt: skip
    """One run. Sizes are in tokens, samples or iterations, as each field says."""

    def __post_init__(self) -> None:
        bad = [problem for section in SECTIONS for problem in section.problems(self)]
        refuse(bad, doing="reading the training configuration", kind=ConfigError)


from mconv.train.config.load import PREFIX, merged, read_environment, read_yaml  # noqa: E402 (these read the class above)
from mconv.train.config.read import fitting, help_of, is_list, make  # noqa: E402

__all__ = [
    "PREFIX",
    "SECTIONS",
    "TrainConfig",
    "fitting",
    "help_of",
    "is_list",
    "make",
    "merged",
    "read_environment",
    "read_yaml",
]
