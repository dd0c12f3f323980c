"""The precision of a run: the one that is asked for, else that of the weights that it begins with."""

import dataclasses
from pathlib import Path
from typing import Any

from mconv.convert.checkpoint.model import SourceModel
from mconv.convert.formats.dtype import BFLOAT16, FLOAT16, FLOAT32, DType
from mconv.convert.formats.hf import read_json
from mconv.errors import ConfigError
from mconv.train.config import TrainConfig
from mconv.train.config.compute import NAMES
from mconv.train.model.initial import Drawn

DTYPES = {"fp32": FLOAT32, "bf16": BFLOAT16, "fp16": FLOAT16}
OF = {dtype.name: name for name, dtype in DTYPES.items()}
"""The precision of a dtype's name, as a config.json has it."""


@dataclasses.dataclass(frozen=True, slots=True)
class ChosenPrecision:
    """The precision of a run, and the reason for it."""

    name: str
    """fp32, bf16 or fp16."""
    why: str

    @property
    def line(self) -> str:
        """Return the precision and its reason, for the start of a run and for a plan."""
        return f"precision: {self.name}, {self.why}"


def precision_of(config: TrainConfig, opened: SourceModel) -> ChosenPrecision:
    """Return the precision that a configuration has with the weights of an opened checkpoint.

    Raises ConfigError where the configuration excludes what is left, such as `fp32: false` for fp32 weights.
    """
    if asked := [name for name in NAMES if getattr(config, name)]:
        return ChosenPrecision(asked[0], _asked(asked[0], *_of_weights(config, opened)))
    own, whose = _of_weights(config, opened)
    if getattr(config, own) is not False:
        return ChosenPrecision(own, f"{whose}; {_others(own)}")
    if config.fp32 is False:
        excluded, left = ([n for n in NAMES if (getattr(config, n) is False) == out] for out in (True, False))
        raise ConfigError(
            f"{' and '.join(excluded)} {'are' if len(excluded) > 1 else 'is'} false, but the run would be in {own}, "
            f"{whose}: set {' or '.join(left)}"
        )
    return ChosenPrecision("fp32", f"since {own} is false; without that it would be {own}, {whose}")


def resolved(config: TrainConfig, opened: SourceModel) -> tuple[TrainConfig, ChosenPrecision]:
    """Return the configuration with one of fp32, bf16 and fp16 true and the others false, and why that one."""
    found = precision_of(config, opened)
    asked: dict[str, Any] = {name: name == found.name for name in NAMES}
    return dataclasses.replace(config, **asked), found


def dtype_of(config: TrainConfig) -> DType:
    """Return the dtype of weights in forward and backward passes. Raises ConfigError before `resolved`."""
    if found := [name for name in NAMES if getattr(config, name)]:
        return DTYPES[found[0]]
    raise ConfigError("the precision is not resolved: none of fp32, bf16 and fp16 is set")


def _asked(name: str, own: str, whose: str) -> str:
    return "as asked for" + (f"; without --{name} it would be {own}, {whose}" if own != name else "")


def _others(own: str) -> str:
    """Return what to give for another precision."""
    return "--bf16 trains in bf16 with fp32 main weights" if own == "fp32" else "--fp32 trains in fp32"


def _of_weights(config: TrainConfig, opened: SourceModel) -> tuple[str, str]:
    """Return the name of the weights' precision, and a reason in words."""
    if isinstance(opened.source, Drawn):
        return _of_random(config)
    name = opened.dtype.name
    if name not in OF:
        return "fp32", f"for the weights of {opened.name}, which are {name}"
    if len(opened.dtypes) > 1:
        held = ", ".join(sorted(dtype.name for dtype in opened.dtypes))
        return OF[name], f"as most weights of {opened.name} are (it holds {held})"
    return OF[name], f"as the weights of {opened.name} are"


def _of_random(config: TrainConfig) -> tuple[str, str]:
    """Return the precision of random weights: the dtype in the config.json that `model` names, else fp32."""
    path = Path(str(config.model))
    file = path / "config.json" if path.is_dir() else path
    values = read_json(file) if config.model else {}
    name = str(values.get("dtype") or values.get("torch_dtype") or "").removeprefix("torch.")
    return (OF[name], f"as the dtype in {file} is") if name in OF else ("fp32", "as random weights are drawn")
