"""What follows a checkpoint."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from mconv.train.config import rules


@dataclass(frozen=True, kw_only=True)
class Hooks:
    """Commands and exports, once a checkpoint is whole."""

    after_checkpoint: str | None = None
    """Command for a shell after each checkpoint: its folder is $1 and $MCONV_CHECKPOINT, an export $MCONV_HF_FOLDER."""
    after_checkpoint_background: bool = False
    """Go on training while that command runs, instead of waiting for it."""
    after_checkpoint_failure: Literal["warn", "stop"] = "warn"
    """What a failure of that command does: say so, or stop the run with exit code 1."""
    export_hf_every: int = 0
    """Export each so-many-th checkpoint of `save_interval`, and the last of all, to `hf/` under `save`; 0: none."""

    @staticmethod
    def problems(config: Any) -> Iterator[str]:
        """Broken rules of this section."""
        yield from rules.not_negative(config, "export_hf_every")
        if (config.after_checkpoint or config.export_hf_every) and config.save is None:
            yield "after_checkpoint and export_hf_every need save, the folder for the checkpoints"
        if config.export_hf_every and (config.lora_rank or config.lora_load):
            yield "export_hf_every exports models, and checkpoints of LoRA hold adapters alone; leave it out"
