"""What a Megatron checkpoint is: from its args, from our manifest beside it, and from what the user says of it."""

from argparse import Namespace
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mconv.convert import manifest
from mconv.convert.dialects import DIALECTS
from mconv.convert.families import FAMILIES
from mconv.convert.formats.tensors import Located
from mconv.convert.table import Family
from mconv.errors import ConfigError, FormatError, refuse
from mconv.shard.layout import Layout
from mconv.spec import ModelSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class Said:
    """What the user says of a checkpoint that may not know it itself."""

    vocab_size: int | None = None
    dialect: str | None = None
    config: Path | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """What a Megatron checkpoint is."""

    manifest: dict[str, Any] | None
    dialect: str
    family: Family
    spec: ModelSpec
    layout: Layout


def identify(
    folder: Path, common: dict[str, Any], said: Said, *, tensors: Mapping[str, Located], only: str | None = None
) -> Identity:
    """From its args, and from our manifest where there is one. They must agree.

    `tensors`: those of the rank files, by key. `only`: the one dialect that the format has.
    """
    made, args = manifest.read(folder), common.get("args")
    if not isinstance(args, Namespace):
        raise FormatError(f"{folder}: no args in it, so its architecture is unknown")
    dialect = DIALECTS[only or "mcore"]
    told = _told(folder, made) if made else None
    if told and said.vocab_size not in (None, told.vocab_size):
        raise ConfigError(f"{folder / manifest.NAME} says a vocabulary of {told.vocab_size}, not {said.vocab_size}")
    spec = dialect.spec_of(args, tensors=tensors, vocab_size=told.vocab_size if told else said.vocab_size)
    layout = dialect.layout_of(args, tensors)
    if told:
        _agree(folder, dialect.stored_spec(told), spec)
        spec = told
    if spec.family not in FAMILIES:
        raise ConfigError(f"{folder / manifest.NAME}: family {spec.family!r} is not one of {sorted(FAMILIES)}")
    if spec.vocab_size > layout.padded_vocab:
        raise ConfigError(
            f"{folder}: the true vocabulary {spec.vocab_size} is larger than the padded one, {layout.padded_vocab}"
        )
    return Identity(manifest=made, dialect=dialect.name, family=FAMILIES[spec.family], spec=spec, layout=layout)


def _told(folder: Path, made: dict[str, Any]) -> ModelSpec:
    try:
        return ModelSpec.from_dict(made.get("spec", {}))
    except ConfigError as error:
        raise ConfigError(f"{folder / manifest.NAME}: {error}; remove it if it is not this checkpoint's") from error


def _agree(folder: Path, told: ModelSpec, args: ModelSpec) -> None:
    """Megatron's args cannot say everything (biases by place, three of llama3's fields); the rest must be the same."""
    a, b = told.to_dict(), args.to_dict()
    for values in (a, b):
        values["family"] = None
        values["rope"] = {k: v for k, v in values["rope"].items() if k in ("kind", "base", "factor")}
    differ = [f"{k}: {a[k]} in {manifest.NAME}, {b[k]} in its args" for k in a if a[k] != b[k]]
    refuse(differ, doing=f"{folder}: the manifest and the checkpoint's args differ", kind=ConfigError)
