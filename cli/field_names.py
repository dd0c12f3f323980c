"""How a message of `mconv train` or `plan` names a field: as the user wrote it, a flag, a variable or a line of YAML."""

import os
import re
from collections.abc import Sequence

ABBREVIATIONS = ("lr", "tp", "pp", "vpp", "bf16", "fp16", "fp32")
"""Names without an underscore that are no English words."""
BEFORE = ("give", "set", "needs", "drop", "without")
"""Words after which a name of one word is a field's."""
AFTER = ("is", "has", "and", "needs", "holds", "cannot")
"""Words that follow a field's name at the beginning of a message."""
OF_MODELS = (
    "num_layers", "hidden_size", "ffn_hidden_size", "num_attention_heads", "num_query_groups", "kv_channels",
    "vocab_size", "max_position_embeddings", "norm_epsilon", "rotary_base", "position_embedding_type",
)  # fmt: skip
"""Names that a checkpoint's args or a config.json have too: they are ours only where the user gave them."""


def as_typed(message: str, argv: Sequence[str]) -> str:
    """Return a message with each field of a run named as this command line, the environment or a YAML file gives it."""
    from mconv.train.config import PREFIX, SECTIONS

    fields = [name for section in SECTIONS for name in section.__annotations__]
    words = {word.partition("=")[0].replace("-", "_").lstrip("_") for word in argv if word.startswith("--")}
    in_yaml = any(word.endswith((".yaml", ".yml")) for word in argv)

    def typed(name: str) -> str:
        if name in words:
            return f"--{name.replace('_', '-')}"
        if f"{PREFIX}{name.upper()}" in os.environ:
            return f"{PREFIX}{name.upper()}"
        return name if in_yaml or name in OF_MODELS else f"--{name.replace('_', '-')}"

    for name in sorted(fields, key=len, reverse=True):
        message = re.sub(_places(name), lambda found: typed(found[0]), message, flags=re.MULTILINE)
    return message


def _places(name: str) -> str:
    """Return a pattern for a field's name where it stands for the field: no part of a path, a flag or another word."""
    layout = r"(?! \d+ x )" if name in ("tp", "pp", "vpp") else ""  # "tp 2 x pp 1" describes a checkpoint
    alone = rf"(?<![\w./'\"`-])(?<! x ){name}(?![\w./'\"`=-])(?!: ){layout}"
    if "_" in name or name in ABBREVIATIONS:
        return alone
    begins = rf"(?:(?<=^)|(?<=^  - )){name}(?= (?:{'|'.join(AFTER)})\b)"
    follows = "|".join(rf"(?<=\b{word} ){name}\b(?![\w./'\"`=-])" for word in BEFORE)
    return f"{begins}|{follows}"
