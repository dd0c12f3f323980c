"""The choice that a checkpoint with optimizer state asks for: resume its run, or start a new one with its weights."""

from collections.abc import Mapping
from typing import Any

from mconv.convert.checkpoint.model import SourceModel
from mconv.convert.checkpoint.optimizer import has_state
from mconv.errors import ConfigError


def left_out(opened: SourceModel, values: Mapping[str, Any]) -> str | None:
    """Return a line on the optimizer state in `load` that a new run does not use; None where there is none to leave out.

    `values`: the fields of a configuration. Raises ConfigError where they do not say which of the two is meant.
    """
    if values.get("resume") or values.get("eval_only") or not has_state(opened):
        return None
    at = f"at iteration {opened.iteration}" if opened.iteration is not None else "in it"
    if values.get("lora_rank") or values.get("lora_load"):
        return f"LoRA begins at iteration 0 on the weights of {opened.name}; the optimizer state {at} is not used"
    if values.get("finetune"):
        return f"finetune: begins at iteration 0 with the weights of {opened.name}; its optimizer state {at} is not used"
    raise ConfigError(
        f"{opened.name} holds a run with optimizer state, {at}: give --resume to continue with its iteration, optimizer "
        "and schedule, or --finetune to take its weights alone and begin at iteration 0"
    )
