"""What follows a checkpoint."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from mconv.train.config import rules


@dataclass(frozen=True, kw_only=True)
class Hooks:
    """Hooks: commands and exports after each checkpoint."""

    after_checkpoint: str | None = None
    """Shell command to run after each checkpoint. Its folder is $1 and $MCONV_CHECKPOINT; an exported folder is
    $MCONV_HF_FOLDER."""
    after_checkpoint_background: bool = False
    """Continue training while the after_checkpoint command runs, instead of waiting for it."""
    after_checkpoint_failure: Literal["warn", "stop"] = "warn"
    """When the after_checkpoint command fails: warn, or stop the run with exit code 1."""
    export_hf_every: int = 0
    """Export every n-th checkpoint of save_interval, and the last one, to `hf/` in the save folder; 0 exports none."""

    @staticmethod
    def problems(config: Any) -> Iterator[str]:
        """Yield the broken rules of this section."""
        yield from rules.not_negative(config, "export_hf_every")
        if (config.after_checkpoint or config.export_hf_every) and config.save is None:
            yield "after_checkpoint and export_hf_every need save, the folder for the checkpoints"
        if config.export_hf_every and (config.lora_rank or config.lora_load):
            yield "export_hf_every exports models, and checkpoints of LoRA hold adapters alone; leave it out"
