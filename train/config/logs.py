"""What a run tells."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from mconv.train.config import rules


@dataclass(frozen=True, kw_only=True)
class Logs:
    """Lines, files and boards."""

    log_interval: int = 1
    """Iterations between printed lines; the log file has them all."""
    log_throughput: bool = False
    """Print TFLOP/s, tokens/s and MFU of each GPU, memory and the time left too; the log file always has them."""
    tensorboard_dir: str | None = None
    """Folder for TensorBoard event files."""
    wandb_project: str | None = None
    """Project of Weights & Biases to report to, with the key from WANDB_API_KEY; offline where there is none."""
    wandb_entity: str | None = None
    """User or team of that project; W&B's default if not given."""
    wandb_exp_name: str | None = None
    """Name of the run in that project; a resumed run goes on under the id that is kept in `save`."""
    wandb_save_dir: str | None = None
    """Folder for W&B's own files; `save` if not given."""

    @staticmethod
    def problems(config: Any) -> Iterator[str]:
        """Broken rules of this section."""
        yield from rules.at_least_1(config, "log_interval")
        for name in ("wandb_entity", "wandb_exp_name", "wandb_save_dir"):
            if getattr(config, name) is not None and config.wandb_project is None:
                yield f"{name} is for wandb_project; give that too"
