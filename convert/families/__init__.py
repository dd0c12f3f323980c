"""One file per architecture: a table of weights and a two-way table of config keys."""

from typing import Any

from mconv.convert.families.llama import LLAMA
from mconv.convert.table import Family
from mconv.errors import ConfigError

FAMILIES: dict[str, Family] = {family.name: family for family in (LLAMA,)}


def family_of(config: dict[str, Any]) -> Family:
    """The family that claims a `config.json`, by its `model_type` and `architectures`. Never by size or name."""
    for key in ("quantization_config", "auto_map"):
        if config.get(key):
            why = "quantised weights" if key == "quantization_config" else "code that comes with the model"
            raise ConfigError(f"config.json has {key!r}: mconv does not read {why}")
    for family in FAMILIES.values():
        if config.get("model_type") == family.model_type:
            named = config.get("architectures") or [family.architecture]
            if [str(name).lower() for name in named] != [family.architecture.lower()]:  # LLaMA-1 spelt it LLaMA
                raise ConfigError(f"config.json: architectures is {named}; mconv supports {family.architecture}")
            return family
    raise ConfigError(f"config.json: model_type is {config.get('model_type')!r}; mconv supports {sorted(FAMILIES)}")


__all__ = ["FAMILIES", "family_of"]
