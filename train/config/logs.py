"""What a run tells."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from mconv.train.config import rules


@dataclass(frozen=True, kw_only=True)
class Logs:
    """Logs: printed lines, TensorBoard and Weights & Biases."""

    log_interval: int = 1
    """Iterations between printed lines; the log file has every iteration."""
    log_throughput: bool = False
    """Also print each GPU's TFLOP/s, tokens/s and MFU, its memory, and the time left. The log file always has them."""
    print_args: bool = False
    """Print all arguments at the start, in Megatron-LM's form; otherwise only those that are not at their defaults or
    were inherited."""
    tensorboard_dir: str | None = None
    """Folder for TensorBoard event files."""
    wandb_project: str | None = None
    """Weights & Biases project to log to, with the key of WANDB_API_KEY; offline without a key."""
    wandb_entity: str | None = None
    """Weights & Biases user or team; W&B's default if not given."""
    wandb_exp_name: str | None = None
    """Weights & Biases run name. A resumed run continues under the id recorded in the save folder."""
    wandb_save_dir: str | None = None
    """Folder for W&B's own files; the save folder if not given."""

    @staticmethod
    def problems(config: Any) -> Iterator[str]:
        """Yield the broken rules of this section."""
        yield from rules.at_least_1(config, "log_interval")
        for name in ("wandb_entity", "wandb_exp_name", "wandb_save_dir"):
            if getattr(config, name) is not None and config.wandb_project is None:
                yield f"{name} is for wandb_project; give that too"
