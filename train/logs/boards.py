"""Boards that a run reports to besides its own log: TensorBoard, and Weights & Biases."""

import importlib
import math
import os
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from mconv import extras
from mconv.errors import ConfigError, MconvError
from mconv.train.config import TrainConfig

WANDB_ID = "wandb_run_id.txt"
"""File in the save folder with the id of the W&B run that a resumed run continues."""


@runtime_checkable
class Board(Protocol):
    """Somewhere that numbers go."""

    def log(self, values: dict[str, float], iteration: int) -> None:
        """Send or write numbers by name."""

    def close(self) -> None:
        """Send or write everything that is left."""


def boards(config: TrainConfig, *, described: dict[str, Any], iteration: int = 0) -> tuple[Board, ...]:
    """Return the boards that `config` asks for, of a run that begins after `iteration` steps.

    `described` is what a board is told of the run. Raises MconvError, with what to install, if one is missing.
    """
    check_installed(config)
    wanted = [TensorBoard(config.tensorboard_dir, iteration=iteration)] if config.tensorboard_dir else []
    return (*wanted, *([WandB(config, described)] if config.wandb_project else []))


def check_installed(config: TrainConfig) -> None:
    """Raise MconvError, with what to install, if a board is asked for and not there."""
    if config.tensorboard_dir:
        extras.need("log", to="tensorboard_dir")
    if config.wandb_project and not extras.found("wandb"):
        raise MconvError("wandb_project needs wandb: pip install wandb")


class TensorBoard:
    """Event files. Steps after `iteration`, which another job had taken before it was killed, are taken back."""

    def __init__(self, folder: str, *, iteration: int = 0) -> None:
        writer = importlib.import_module("torch.utils.tensorboard").SummaryWriter
        self.writer = writer(folder, purge_step=iteration + 1 if iteration else None)

    def log(self, values: dict[str, float], iteration: int) -> None:
        for name, value in values.items():
            self.writer.add_scalar(name, value, iteration)

    def close(self) -> None:
        self.writer.close()


class WandB:
    """A run of Weights & Biases. The key is W&B's own affair: it reads the environment or its login, we read neither."""

    def __init__(self, config: TrainConfig, described: dict[str, Any]) -> None:
        wandb = importlib.import_module("wandb")
        folder = Path(str(config.wandb_save_dir or config.save or "."))
        kept = Path(config.save) / WANDB_ID if config.save else None
        before = kept.read_text().strip() if kept and kept.is_file() else None
        try:
            folder.mkdir(parents=True, exist_ok=True)  # W&B would write to a temporary folder instead
            self.run = wandb.init(
                project=config.wandb_project, entity=config.wandb_entity, name=config.wandb_exp_name, dir=str(folder),
                id=before, resume="allow", config=described, mode=mode(),
            )  # fmt: skip
        except Exception as error:  # its own kinds are known only where it is installed
            raise ConfigError(f"W&B cannot begin: {error}; WANDB_MODE=offline needs neither key nor network") from error
        if kept:
            kept.parent.mkdir(parents=True, exist_ok=True)
            kept.write_text(f"{self.run.id}\n")

    def log(self, values: dict[str, float], iteration: int) -> None:
        self.run.log({name: value for name, value in values.items() if math.isfinite(value)}, step=iteration)

    def close(self) -> None:
        self.run.finish()


def mode() -> str:
    """Return W&B's mode: that of WANDB_MODE; else online with a key in the environment, or offline into a folder."""
    said = os.environ.get("WANDB_MODE")
    return said or ("online" if "WANDB_API_KEY" in os.environ else "offline")
