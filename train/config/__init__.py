"""Everything that `mconv train` can be told: one flat dataclass of sections, read from YAML and flags."""

from dataclasses import dataclass

from mconv.errors import ConfigError, refuse
from mconv.train.config.attention import Attention
from mconv.train.config.boundaries import Boundaries
from mconv.train.config.checkpoints import Checkpoints
from mconv.train.config.data import Data
from mconv.train.config.evaluation import Evaluation
from mconv.train.config.guards import Guards
from mconv.train.config.hooks import Hooks
from mconv.train.config.instruction import Instruction
from mconv.train.config.length import Length
from mconv.train.config.logs import Logs
from mconv.train.config.lora import Lora
from mconv.train.config.model import Model
from mconv.train.config.optimizer import Optimizer
from mconv.train.config.parallelism import Parallelism
from mconv.train.config.precision import Precision
from mconv.train.config.recompute import Recompute
from mconv.train.config.schedule import Schedule
from mconv.train.config.start import Start
from mconv.train.config.stops import Stops
from mconv.train.config.trained import Trained

SECTIONS = (
    Start, Model, Data, Boundaries, Instruction, Parallelism, Recompute, Length, Schedule, Optimizer, Precision,
    Attention, Trained, Lora, Checkpoints, Hooks, Stops, Evaluation, Logs, Guards,
)  # fmt: skip
"""In the order of `mconv train --help`. A section is a page of fields and the rules that they must keep."""


@dataclass(frozen=True, kw_only=True)
class TrainConfig(
    Guards, Logs, Evaluation, Stops, Hooks, Checkpoints, Lora, Trained, Attention, Precision, Optimizer, Schedule, Length,
    Recompute, Parallelism, Instruction, Boundaries, Data, Model, Start,
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
