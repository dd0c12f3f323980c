"""One file per architecture: a table of weights and a two-way table of config keys."""

import contextlib
import dataclasses
import re
from pathlib import Path
from typing import Any

from mconv.convert.families.falcon import FALCON
from mconv.convert.families.gpt2 import GPT2
from mconv.convert.families.llama import LLAMA
from mconv.convert.families.mistral import MISTRAL
from mconv.convert.families.qwen2 import QWEN2
from mconv.convert.families.qwen3 import QWEN3
from mconv.convert.folders.ignored import NOTHING, Ignored
from mconv.convert.formats.jsonfile import read_json
from mconv.convert.spelling.table import Family
from mconv.errors import ConfigError
from mconv.spec import ModelSpec

FAMILIES: dict[str, Family] = {family.name: family for family in (LLAMA, MISTRAL, FALCON, GPT2, QWEN2, QWEN3)}
"""Families by name, in the order in which `family_for` asks them."""
RENAMED = dict.fromkeys(
    ("RefinedWeb", "RefinedWebModel"),
    "this is Falcon's name from before transformers had it; download its repository again, whose config.json now has "
    "model_type 'falcon'",
)
"""Names that models had once, and what to do about them."""


def family_of(config: dict[str, Any]) -> Family:
    """The family that claims a `config.json`, by its `model_type` and `architectures`. Never by size or name."""
    name = config.get("model_type")
    found = next((family for family in FAMILIES.values() if name == family.model_type), None)
    if config.get("quantization_config"):
        raise ConfigError("config.json has 'quantization_config': mconv does not read quantised weights")
    if (code := config.get("auto_map")) and not (found and _is_hub_code(code, found)):
        raise ConfigError("config.json has 'auto_map': mconv does not read code that comes with the model")
    if found is None:
        advice = RENAMED.get(str(name), f"mconv supports {sorted(FAMILIES)}")
        raise ConfigError(f"config.json: model_type is {name!r}; {advice}")
    named = config.get("architectures") or [found.architecture]
    if not isinstance(named, list):
        raise ConfigError(f"config.json: architectures is {named!r}, not a list of names")
    if odd := [name for name in named if not is_named(name, found)]:
        raise ConfigError(
            f"config.json: architectures is {named}; mconv converts {found.architecture} (or {found.headless}, the same "
            f"without a head), not {', '.join(map(str, odd))}"
        )
    return found


def family_for(spec: ModelSpec) -> Family:
    """The first family whose config can say such a model, by itself or with biases that are zero.

    For checkpoints and runs that do not know what Hugging Face called the model. Raises ConfigError if there is none.
    """
    itself = [(family, dataclasses.replace(spec, family=family.name)) for family in FAMILIES.values()]
    with_zeros = [(family, family.expressible(spec)) for family in FAMILIES.values()]
    for family, made in (*itself, *with_zeros):
        with contextlib.suppress(ConfigError):
            family.write_config(made)
            return family
    biased = [name for name in ("qkv_bias", "proj_bias", "mlp_bias") if getattr(spec, name)]
    raise ConfigError(
        f"no family that mconv supports computes this: norm {spec.norm}, activation {spec.activation} (swiglu "
        f"{spec.activation == 'swiglu'}), positions {spec.position}, sliding window {spec.sliding_window}, attention and "
        f"MLP side by side {spec.parallel_attention}, norms of query and key heads {spec.qk_norm}, "
        f"biases {', '.join(biased) or 'none'}"
    )


def is_named(name: Any, family: Family) -> bool:
    """Return whether a name in `architectures` is of the family's model, with or without its head."""
    known = {family.architecture.lower(), family.headless.lower()}
    return str(name).lower().removeprefix("fsdp") in known  # LLaMA-1 spelt it LLaMA; FSDP puts its own name in front


def described(path: Path, ignore: Ignored = NOTHING) -> ModelSpec:
    """Return the spec that a `config.json`, or the one in a folder, describes. Raises ConfigError, FormatError."""
    values = read_json(path / "config.json" if path.is_dir() else path)
    return family_of(values).read_config(values, ignore.config_keys)


def _is_hub_code(code: Any, family: Family) -> bool:
    """Return whether `auto_map` names only the copy of transformers' own code that the Hub's files of a family carry."""
    names = list(code.values()) if isinstance(code, dict) else [None]
    return bool(family.hub_code) and all(isinstance(n, str) and re.fullmatch(family.hub_code or "", n) for n in names)


__all__ = ["FAMILIES", "described", "family_for", "family_of"]
