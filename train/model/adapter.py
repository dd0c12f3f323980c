"""Which adapter a configuration is about: one that it makes, or a PEFT adapter that it names.

Nothing of megatron-core is needed, so that `mconv plan` answers at once.
"""

import dataclasses
from pathlib import Path
from typing import Any

from mconv.convert import peft
from mconv.convert.checkpoint import Checkpoint
from mconv.convert.lora import Adapter, Settings, chosen, linears
from mconv.errors import ConfigError, FormatError
from mconv.train.config import TrainConfig


def wanted(config: TrainConfig) -> bool:
    """Whether a run trains adapters alone."""
    return config.lora_rank is not None or config.lora_load is not None


def asked(config: TrainConfig, base: Checkpoint) -> tuple[Settings, Adapter | None]:
    """An adapter's settings, and the adapter itself where the run starts from one. Raises ConfigError or FormatError."""
    given = _given(config, base)
    return (given.settings if given else _settings(config, base)), given


def _given(config: TrainConfig, base: Checkpoint) -> Adapter | None:
    """The adapter of `lora_load`, if what else the configuration says of it is true."""
    if config.lora_load is None:
        return None
    if not peft.is_adapter(Path(config.lora_load)):
        raise FormatError(f"lora_load {config.lora_load} has no {peft.CONFIG}; give the folder of a PEFT adapter")
    adapter = peft.read(Path(config.lora_load), family=base.family, spec=base.spec)
    known = linears(base.family, base.spec)
    own: dict[str, Any] = {"lora_rank": adapter.settings.rank, "lora_alpha": adapter.settings.alpha}
    asked: dict[str, Any] = {name: getattr(config, name) for name in own}
    if config.lora_targets is not None:
        own["lora_targets"], asked["lora_targets"] = adapter.settings.targets, chosen(config.lora_targets, known)
    for name, value in own.items():
        if asked[name] is not None and asked[name] != value:
            raise ConfigError(f"{name} is {asked[name]}, but the adapter {config.lora_load} has {value}; leave it out")
    settings = dataclasses.replace(adapter.settings, dropout=config.lora_dropout)
    return dataclasses.replace(adapter, settings=settings)


def _settings(config: TrainConfig, base: Checkpoint) -> Settings:
    rank = config.lora_rank or 0
    targets = chosen(config.lora_targets, linears(base.family, base.spec))
    alpha = float(rank) if config.lora_alpha is None else config.lora_alpha
    return Settings(rank=rank, alpha=alpha, targets=targets, dropout=config.lora_dropout)
