"""The adapter of a configuration: a new one, or a PEFT adapter that it names.

Nothing of megatron-core is needed, so that `mconv plan` answers at once.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mconv.convert.checkpoint.model import SourceModel
from mconv.convert.peft import folder as peft
from mconv.convert.peft.lora import Linear, Settings, chosen, linears
from mconv.errors import ConfigError, FormatError
from mconv.train.config import TrainConfig

if TYPE_CHECKING:
    from mconv.convert.peft.adapter import Adapter


def wanted(config: TrainConfig) -> bool:
    """Return whether a run trains adapters alone."""
    return config.lora_rank is not None or config.lora_load is not None


def asked(config: TrainConfig, base: SourceModel) -> "tuple[Settings, Adapter | None]":
    """Return an adapter's settings, and the adapter to start from, if any. Raises ConfigError or FormatError."""
    given = _given(config, base)
    return (given.settings if given else _settings(config, base)), given


def _given(config: TrainConfig, base: SourceModel) -> "Adapter | None":
    """Return the adapter of `lora_load`, if the configuration's other fields agree with it."""
    if config.lora_load is None:
        return None
    if not peft.has_adapter(Path(config.lora_load)):
        raise FormatError(f"lora_load {config.lora_load} has no {peft.CONFIG}; give the folder of a PEFT adapter")
    from mconv.convert.checkpoint import adapter_folder as peft_adapter

    ignore = config.ignore_config_key or ()
    adapter = peft_adapter.read(Path(config.lora_load), family=base.family, spec=base.spec, ignore=ignore)
    known = linears(base.family, base.spec)
    _check_trainable(config.lora_load, adapter, known)
    own: dict[str, Any] = {"lora_rank": adapter.settings.rank, "lora_alpha": adapter.settings.alpha}
    asked: dict[str, Any] = {name: getattr(config, name) for name in own}
    if config.lora_targets is not None:
        own["lora_targets"], asked["lora_targets"] = adapter.settings.targets, chosen(config.lora_targets, known)
    for name, value in own.items():
        if asked[name] is not None and asked[name] != value:
            raise ConfigError(f"{name} is {asked[name]}, but the adapter {config.lora_load} has {value}; leave it out")
    settings = dataclasses.replace(adapter.settings, dropout=config.lora_dropout)
    return dataclasses.replace(adapter, settings=settings)


def _check_trainable(folder: str, adapter: "Adapter", known: Mapping[str, Linear]) -> None:
    """Refuse what a merge can do and a run does not train: whole modules, and adapters outside the layers."""
    outside = [name for name in adapter.settings.targets if name not in known]
    more = [f"an adapter of {name}" for name in outside] + [f"all of {one.logical}" for one in adapter.replaced[:3]]
    if more:
        raise ConfigError(
            f"lora_load {folder} holds {', '.join(more)}, and a run trains adapters of the layers' linears alone; "
            "`mconv lora merge` merges it, and a run can begin from the result"
        )


def _settings(config: TrainConfig, base: SourceModel) -> Settings:
    rank = config.lora_rank or 0
    targets = chosen(config.lora_targets, linears(base.family, base.spec))
    alpha = float(rank) if config.lora_alpha is None else config.lora_alpha
    return Settings(rank=rank, alpha=alpha, targets=targets, dropout=config.lora_dropout)
