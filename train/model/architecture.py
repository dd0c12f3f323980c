"""The model of a configuration: that of its checkpoint, or a preset or config.json with the changes asked for.

Nothing of megatron-core is needed, so that `mconv plan` answers at once.
"""

import dataclasses
import difflib
from pathlib import Path
from typing import Any

from mconv.convert.checkpoint.model import SourceModel
from mconv.convert.checkpoint.open import open_checkpoint
from mconv.convert.families import described, family_for
from mconv.convert.folders.ignored import Ignored, ignored
from mconv.errors import ConfigError, refuse
from mconv.spec import ModelSpec
from mconv.train.config import TrainConfig
from mconv.train.config.model import POSITIONS, SIZES
from mconv.train.model import initial
from mconv.train.model.presets import PRESETS

DEFAULT_STD = 0.02


def origin(config: TrainConfig, *, iteration: int | None = None) -> SourceModel:
    """Return the checkpoint that a run starts from: the one in `load`, or one whose weights are drawn as they are read.

    `iteration`: that one of a Megatron root, not the tracker's.

    Raises ConfigError on an architecture that cannot be, FormatError on a checkpoint that is none.
    """
    if config.init == "checkpoint":
        return open_checkpoint(
            Path(str(config.load)), vocab_size=config.vocab_size, iteration=iteration, ignore=passes(config)
        )
    spec, std, path = _base(config)
    return initial.blueprint(changed(spec, config), std=config.init_method_std or std, seed=config.seed, path=path)


def passes(config: TrainConfig) -> Ignored:
    """Return the names that no table claims and that the configuration lets pass."""
    return ignored(args=config.ignore_arg or (), config_keys=config.ignore_config_key or ())


def _base(config: TrainConfig) -> tuple[ModelSpec, float, Path]:
    """Return the architecture before any change, the standard deviation of its weights, and its name."""
    if config.preset is not None:
        if config.preset not in PRESETS:
            close = difflib.get_close_matches(config.preset, PRESETS, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"there are {', '.join(PRESETS)}"
            raise ConfigError(f"preset {config.preset!r} is not known; {hint}")
        preset = PRESETS[config.preset]
        return preset.spec, preset.init_method_std, Path(config.preset)
    path = Path(str(config.model))
    return described(path, passes(config)), DEFAULT_STD, path if path.is_dir() else path.parent


def changed(spec: ModelSpec, config: TrainConfig) -> ModelSpec:
    """Return the architecture with the changes that a configuration asks for, and with what follows from them.

    Raises ConfigError, all at once, on changes that do not fit each other.
    """
    asked: dict[str, Any] = {name: getattr(config, name) for name in (*SIZES, "norm_epsilon", "vocab_size")}
    asked = {name: value for name, value in asked.items() if value is not None}
    asked |= _positions(spec, config)
    follow = {**_following(spec, asked), **asked}
    refuse(_unfit(spec, asked, follow), doing="changing the model", kind=ConfigError)
    made = dataclasses.replace(spec, **follow)
    family = made.family if made.position == spec.position else family_for(made).name
    return dataclasses.replace(made, family=family)


def _positions(spec: ModelSpec, config: TrainConfig) -> dict[str, Any]:
    """Return the fields of the position embedding that are to be changed."""
    found: dict[str, Any] = {}
    if config.position_embedding_type is not None:
        found["position"] = POSITIONS[config.position_embedding_type]
    if config.rotary_base is not None:
        if found.get("position", spec.position) != "rope":
            raise ConfigError(f"rotary_base is {config.rotary_base:g}, but the model has no rotary embedding")
        found["rope"] = dataclasses.replace(spec.rope, base=config.rotary_base)
    return found


def _following(spec: ModelSpec, asked: dict[str, Any]) -> dict[str, Any]:
    """Return the sizes that follow from others in the architecture, computed again."""
    hidden = asked.get("hidden_size", spec.hidden_size)
    heads = asked.get("num_attention_heads", spec.num_attention_heads)
    found = {}
    if spec.ffn_hidden_size == 4 * spec.hidden_size:
        found["ffn_hidden_size"] = 4 * hidden
    if spec.num_query_groups == spec.num_attention_heads:
        found["num_query_groups"] = heads
    if spec.kv_channels * spec.num_attention_heads == spec.hidden_size:
        found["kv_channels"] = hidden // heads
    return found


def _unfit(spec: ModelSpec, asked: dict[str, Any], follow: dict[str, Any]) -> list[str]:
    """Return the changes that leave a size open, or that no heads fit."""
    hidden, heads = (follow.get(name, getattr(spec, name)) for name in ("hidden_size", "num_attention_heads"))
    problems = []
    if hidden % heads and "kv_channels" not in asked:
        problems.append(f"hidden_size {hidden} is not a multiple of num_attention_heads {heads}; or give kv_channels")
    if hidden != spec.hidden_size and "ffn_hidden_size" not in follow:
        problems.append(f"hidden_size is {hidden} in place of {spec.hidden_size}: give ffn_hidden_size too, which "
                        "was not 4 times the hidden size, so it does not follow")  # fmt: skip
    return problems


__all__ = ["changed", "origin"]
