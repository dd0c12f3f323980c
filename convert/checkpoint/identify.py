"""What a Megatron checkpoint is: from its args, from our manifest beside it, and from what the user says of it."""

import dataclasses
from argparse import Namespace
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mconv.convert.checkpoint import bridge
from mconv.convert.dialects import DIALECTS, Dialect
from mconv.convert.dialects.arguments import check
from mconv.convert.families import FAMILIES, described, family_for
from mconv.convert.folders import manifest
from mconv.convert.folders.ignored import NOTHING, Ignored, Passed, joined
from mconv.convert.formats.tensors import Located
from mconv.convert.spelling.table import Family
from mconv.errors import ConfigError, FormatError, refuse
from mconv.shard.layout import Layout
from mconv.spec import UNNAMED, ModelSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class Said:
    """What the user says of a checkpoint that may not know it itself."""

    vocab_size: int | None = None
    dialect: str | None = None
    config: Path | None = None
    """A Hugging Face `config.json`."""
    ignore: Ignored = NOTHING
    """Names that no table claims and that may pass."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """What a Megatron checkpoint is."""

    manifest: dict[str, Any] | None
    dialect: str
    family: Family
    spec: ModelSpec
    layout: Layout
    notes: tuple[str, ...] = ()
    """What had to be assumed."""
    ignored: Passed = field(default_factory=dict)
    """What no table claims and was let pass."""


def identify(
    folder: Path, common: dict[str, Any], said: Said, *, tensors: Mapping[str, Located], only: str | None = None
) -> Identity:
    """From its args, from our manifest where there is one, from what the user says. They must agree.

    `tensors`: those of the rank files, by key. `only`: the one dialect that the format has.
    """
    made, args = manifest.read(folder), common.get("args")
    if not isinstance(args, Namespace):
        if not bridge.is_bridge(folder):
            raise FormatError(f"{folder}: no args in it and no {bridge.RUN_CONFIG}, so its architecture is unknown")
        return _of_bridge(folder, made, said)
    dialect = DIALECTS[_dialect(folder, made, said, args, tensors, only=only)]
    _check_version(folder, dialect, common)
    passed = _passed(folder, made, said, args, dialect)
    told = _told(folder, made) if made else None
    if told and said.vocab_size not in (None, told.vocab_size):
        raise ConfigError(f"{folder / manifest.NAME} says a vocabulary of {told.vocab_size}, not {said.vocab_size}")
    settled = described(said.config, said.ignore) if said.config else None
    knows = told or (settled if said.vocab_size is None else None)
    vocab = knows.vocab_size if knows else said.vocab_size
    spec = dialect.spec_of(args, tensors=tensors, vocab_size=vocab, settled=bool(told or settled))
    layout = dialect.layout_of(args, tensors)
    if settled and said.config:
        spec = _settle(said.config, dialect, settled, spec)
    if told:
        _agree(folder, dialect.stored_spec(told), spec)
        spec = told
    notes = () if told or settled else dialect.doubts(args, tensors)
    return _identity(folder, made, dialect.name, spec, layout, notes, passed)


def _passed(folder: Path, made: dict[str, Any] | None, said: Said, args: Namespace, dialect: Dialect) -> dict[str, Any]:
    """Return the args that no row claims and that were let pass, now or when the checkpoint was made."""
    try:
        return check(vars(args), dialect.arguments, ignore=said.ignore.args, told=_kept(made))
    except ConfigError as error:
        raise ConfigError(f"{folder}: {error}") from error


def _kept(made: dict[str, Any] | None) -> dict[str, Any]:
    """Return the args that a manifest records as passed over, with their values."""
    return dict((made or {}).get("ignored", {}).get("args", {}))


def _identity(
    folder: Path,
    made: dict[str, Any] | None,
    dialect: str,
    spec: ModelSpec,
    layout: Layout,
    notes: tuple[str, ...],
    passed: dict[str, Any],
) -> Identity:
    if spec.family == UNNAMED:
        spec = dataclasses.replace(spec, family=family_for(spec).name)
    if spec.family not in FAMILIES:
        raise ConfigError(f"{folder}: family {spec.family!r} is not one of {sorted(FAMILIES)}")
    if spec.vocab_size > layout.padded_vocab:
        raise ConfigError(
            f"{folder}: the true vocabulary {spec.vocab_size} is larger than the padded one, {layout.padded_vocab}"
        )
    family = FAMILIES[spec.family]
    return Identity(
        manifest=made, dialect=dialect, family=family, spec=spec, layout=layout, notes=notes,
        ignored=joined((made or {}).get("ignored", {}), {"args": passed}),
    )  # fmt: skip


def _of_bridge(folder: Path, made: dict[str, Any] | None, said: Said) -> Identity:
    """A checkpoint of Megatron-Bridge, which has no args: from its run_config.yaml."""
    if said.dialect not in (None, "mcore"):
        raise ConfigError(f"{folder} is of the dialect mcore, not {said.dialect}")
    settled = described(said.config, said.ignore) if said.config else _told(folder, made) if made else None
    found = bridge.read(folder, vocab_size=said.vocab_size, settled=settled, ignore=said.ignore.args, told=_kept(made))
    spec = found.spec
    if settled and said.config:
        spec = _settle(said.config, DIALECTS["mcore"], settled, spec)
    if made:
        told = _told(folder, made)
        _agree(folder, DIALECTS["mcore"].stored_spec(told), spec)
        spec = told
    return _identity(folder, made, "mcore", spec, found.layout, found.notes, found.passed)


# ---- dialect ---------------------------------------------------------------------------------------------------------
def _dialect(
    folder: Path,
    made: dict[str, Any] | None,
    said: Said,
    args: Namespace,
    tensors: Mapping[str, Located],
    *,
    only: str | None,
) -> str:
    """As the manifest or the user says; else as names and args tell. Refuses to guess where they leave it open."""
    recorded = only or (made or {}).get("dialect")
    if said.dialect is not None and said.dialect not in DIALECTS:
        raise ConfigError(f"--dialect {said.dialect} is not one of {', '.join(DIALECTS)}")
    if recorded is not None and said.dialect not in (None, recorded):
        raise ConfigError(f"{folder} is of the dialect {recorded}, not {said.dialect}")
    if recorded is not None:
        if recorded not in DIALECTS:
            raise ConfigError(f"{folder / manifest.NAME}: dialect {recorded!r} is not one of {sorted(DIALECTS)}")
        return str(recorded)
    fit, evident = fitting(tensors, args)
    if said.dialect is not None:
        if fit and said.dialect not in fit:
            raise ConfigError(f"{folder}: --dialect {said.dialect}, but its tensors have the names of {', '.join(fit)}")
        return said.dialect
    if len(evident) == 1 or len(fit) < 2:
        return (evident or fit or ["mcore"])[0]
    why = "its names and args speak for both" if evident else "nothing in it tells which"
    raise ConfigError(
        f"{folder}: its tensors have the names of {' and '.join(fit)}, and {why}; these order the rows of QKV and of the "
        f"gated MLP differently though shapes are equal: give {' or '.join(f'--dialect {name}' for name in fit)}"
    )


def fitting(tensors: Mapping[str, Located], args: Namespace) -> tuple[list[str], list[str]]:
    """The dialects whose names the tensors have, and those of them for which a name or an arg of their own speaks."""
    fit, evident = [], []
    for dialect in DIALECTS.values():
        inside = (name for names in dialect.names(ANY).values() for name in names if "{l}" in name)
        ends = tuple(name.format(l=0, leaf="weight") for name in inside)
        if any(key.endswith(ends) for key in tensors):
            fit.append(dialect.name)
            if any(key.endswith(dialect.marks) for key in tensors) or vars(args).keys() & set(dialect.own_args):
                evident.append(dialect.name)
    return fit, evident


ANY = ModelSpec(
    family="", num_layers=1, hidden_size=1, ffn_hidden_size=1, num_attention_heads=1, num_query_groups=1, kv_channels=1,
    vocab_size=1, max_position_embeddings=1, norm_epsilon=0.0,
)  # fmt: skip
"""A spec for asking a dialect what it calls the rows that every model has."""


def _check_version(folder: Path, dialect: Dialect, common: dict[str, Any]) -> None:
    version = common.get("checkpoint_version", 0)
    if dialect.least_version and not (isinstance(version, (int, float)) and version >= dialect.least_version):
        raise FormatError(
            f"{folder}: checkpoint_version is {version!r}; below {dialect.least_version} the rows of QKV are ordered "
            "otherwise, which mconv does not read: load and save it once with the Megatron that wrote it"
        )


# ---- config.json of the user -----------------------------------------------------------------------------------------
FREE = ("family", "vocab_size", "max_position_embeddings")
"""What a config.json may say otherwise than the args: it is what the user wants, or not what decides the function."""
UNTRUSTED = ("norm_epsilon", "rope", "sliding_window")
"""What a config.json may settle where the args of a dialect cannot be trusted."""


def _settle(path: Path, dialect: Dialect, settled: ModelSpec, args: ModelSpec) -> ModelSpec:
    """The spec of the user's config.json, with the vocabulary of the checkpoint. What args do know must be the same."""
    free = (*FREE, *(UNTRUSTED if dialect.untrusted_args else ()))
    a, b = dialect.stored_spec(settled).to_dict(), args.to_dict()
    differ = [f"{k}: {a[k]} in {path}, {b[k]} in its args" for k in a if k not in free and a[k] != b[k]]
    refuse(differ, doing=f"{path} is not the config of this checkpoint", kind=ConfigError)
    return dataclasses.replace(settled, vocab_size=args.vocab_size)


# ---- manifest --------------------------------------------------------------------------------------------------------
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
