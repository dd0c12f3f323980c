"""The identity of a Megatron checkpoint: found from its args, from mconv's manifest and from the user's hints."""

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
class MegatronHints:
    """The user's hints on a Megatron checkpoint whose own files may leave these things open."""

    vocab_size: int | None = None
    dialect: str | None = None
    config: Path | None = None
    """A Hugging Face `config.json`."""
    ignore: Ignored = NOTHING
    """Names that no table claims and that may pass."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """A Megatron checkpoint's model, dialect and layout."""

    manifest: dict[str, Any] | None
    dialect: str
    family: Family
    spec: ModelSpec
    layout: Layout
    notes: tuple[str, ...] = ()
    """Notes on assumptions that were made."""
    ignored: Passed = field(default_factory=dict)
    """Args and config keys that no table claims and that were let pass."""


def identify(
    folder: Path, common: dict[str, Any], hints: MegatronHints, *, tensors: Mapping[str, Located], only: str | None = None
) -> Identity:
    """Return what a checkpoint is by its args, its manifest (if any) and the user's hints, which must agree.

    `tensors`: those of the rank files, by key. `only`: the one dialect that the format has.
    """
    made, args = manifest.read(folder), common.get("args")
    if not isinstance(args, Namespace):
        if not bridge.is_bridge(folder):
            raise FormatError(f"{folder}: no args in it and no {bridge.RUN_CONFIG}, so its architecture is unknown")
        return _of_bridge(folder, made, hints)
    dialect = DIALECTS[_dialect(folder, made, hints, args, tensors, only=only)]
    _check_version(folder, dialect, common)
    passed = _passed(folder, made, hints, args, dialect)
    recorded_spec = _recorded_spec(folder, made) if made else None
    if recorded_spec and hints.vocab_size not in (None, recorded_spec.vocab_size):
        raise ConfigError(
            f"{folder / manifest.NAME} says that the vocabulary is {recorded_spec.vocab_size}, not {hints.vocab_size}"
        )
    settled = described(hints.config, hints.ignore) if hints.config else None
    knows = recorded_spec or (settled if hints.vocab_size is None else None)
    vocab = knows.vocab_size if knows else hints.vocab_size
    spec = dialect.spec_of(args, tensors=tensors, vocab_size=vocab, settled=bool(recorded_spec or settled))
    layout = dialect.layout_of(args, tensors)
    if settled and hints.config:
        spec = _settle(hints.config, dialect, settled, spec)
    if recorded_spec:
        _agree(folder, dialect.stored_spec(recorded_spec), spec)
        spec = recorded_spec
    notes = () if recorded_spec or settled else dialect.assumptions(args, tensors)
    return _identity(folder, made, dialect.name, spec, layout, notes, passed)


def _passed(
    folder: Path, made: dict[str, Any] | None, hints: MegatronHints, args: Namespace, dialect: Dialect
) -> dict[str, Any]:
    """Return the args that no row claims and that were let pass, now or when the checkpoint was made."""
    try:
        return check(vars(args), dialect.arguments, ignore=hints.ignore.args, recorded=_kept(made))
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


def _of_bridge(folder: Path, made: dict[str, Any] | None, hints: MegatronHints) -> Identity:
    """Return the identity of a Megatron-Bridge checkpoint, which has a run_config.yaml and no args."""
    if hints.dialect not in (None, "mcore"):
        raise ConfigError(f"{folder} is of the dialect mcore, not {hints.dialect}")
    settled = described(hints.config, hints.ignore) if hints.config else _recorded_spec(folder, made) if made else None
    found = bridge.read(
        folder, vocab_size=hints.vocab_size, settled=settled, ignore=hints.ignore.args, recorded=_kept(made)
    )
    spec = found.spec
    if settled and hints.config:
        spec = _settle(hints.config, DIALECTS["mcore"], settled, spec)
    if made:
        recorded_spec = _recorded_spec(folder, made)
        _agree(folder, DIALECTS["mcore"].stored_spec(recorded_spec), spec)
        spec = recorded_spec
    return _identity(folder, made, "mcore", spec, found.layout, found.notes, found.passed)


# ---- dialect ---------------------------------------------------------------------------------------------------------
def _dialect(
    folder: Path,
    made: dict[str, Any] | None,
    hints: MegatronHints,
    args: Namespace,
    tensors: Mapping[str, Located],
    *,
    only: str | None,
) -> str:
    """Return the dialect by the manifest, the user's hint, or the names and args. Raises ConfigError if open."""
    recorded = only or (made or {}).get("dialect")
    if hints.dialect is not None and hints.dialect not in DIALECTS:
        raise ConfigError(f"--dialect {hints.dialect} is not one of {', '.join(DIALECTS)}")
    if recorded is not None and hints.dialect not in (None, recorded):
        raise ConfigError(f"{folder} is of the dialect {recorded}, not {hints.dialect}")
    if recorded is not None:
        if recorded not in DIALECTS:
            raise ConfigError(f"{folder / manifest.NAME}: dialect {recorded!r} is not one of {sorted(DIALECTS)}")
        return str(recorded)
    fit, evident = fitting(tensors, args)
    if hints.dialect is not None:
        if fit and hints.dialect not in fit:
            raise ConfigError(f"{folder}: --dialect {hints.dialect}, but its tensors have the names of {', '.join(fit)}")
        return hints.dialect
    if len(evident) == 1 or len(fit) < 2:
        return (evident or fit or ["mcore"])[0]
    why = "its names and args fit both" if evident else "nothing in it tells them apart"
    raise ConfigError(
        f"{folder}: its tensors have the names of {' and '.join(fit)}, and {why}; they order the rows of QKV and of the "
        f"gated MLP differently in tensors of equal shapes: give {' or '.join(f'--dialect {name}' for name in fit)}"
    )


def fitting(tensors: Mapping[str, Located], args: Namespace) -> tuple[list[str], list[str]]:
    """Return the dialects whose names the tensors have, and those of them that a name or an arg of their own confirms."""
    fit, evident = [], []
    for dialect in DIALECTS.values():
        inside = (name for names in dialect.names(ANY).values() for name in names if "{l}" in name)
        ends = tuple(name.format(l=0, leaf="weight") for name in inside)
        if any(key.endswith(ends) for key in tensors):
            fit.append(dialect.name)
            own_name = any(key.endswith(dialect.distinguishing_names) for key in tensors)
            if own_name or vars(args).keys() & set(dialect.own_args):
                evident.append(dialect.name)
    return fit, evident


ANY = ModelSpec(
    family="", num_layers=1, hidden_size=1, ffn_hidden_size=1, num_attention_heads=1, num_query_groups=1, kv_channels=1,
    vocab_size=1, max_position_embeddings=1, norm_epsilon=0.0,
)  # fmt: skip
"""A placeholder spec, to ask a dialect for the names of the rows that every model has."""


def _check_version(folder: Path, dialect: Dialect, common: dict[str, Any]) -> None:
    version = common.get("checkpoint_version", 0)
    if dialect.least_version and not (isinstance(version, (int, float)) and version >= dialect.least_version):
        raise FormatError(
            f"{folder}: checkpoint_version is {version!r}; below {dialect.least_version} the rows of QKV are ordered "
            "otherwise, which mconv does not read: load and save it once with the Megatron that wrote it"
        )


# ---- config.json of the user -----------------------------------------------------------------------------------------
FREE = ("family", "vocab_size", "max_position_embeddings")
"""Fields in which a config.json may differ from the args: the user decides them, or they do not change the function."""
UNTRUSTED = ("norm_epsilon", "rope", "sliding_window")
"""Fields that a config.json decides where the args of a dialect cannot be trusted."""


def _settle(path: Path, dialect: Dialect, settled: ModelSpec, args: ModelSpec) -> ModelSpec:
    """Return the spec of the user's config.json with the checkpoint's vocabulary. Raises ConfigError if args differ."""
    free = (*FREE, *(UNTRUSTED if dialect.untrusted_args else ()))
    a, b = dialect.stored_spec(settled).to_dict(), args.to_dict()
    differ = [f"{k}: {a[k]} in {path}, {b[k]} in its args" for k in a if k not in free and a[k] != b[k]]
    refuse(differ, doing=f"{path} is not the config of this checkpoint", kind=ConfigError)
    return dataclasses.replace(settled, vocab_size=args.vocab_size)


# ---- manifest --------------------------------------------------------------------------------------------------------
def _recorded_spec(folder: Path, made: dict[str, Any]) -> ModelSpec:
    try:
        return ModelSpec.from_dict(made.get("spec", {}))
    except ConfigError as error:
        raise ConfigError(f"{folder / manifest.NAME}: {error}; remove it if it is not this checkpoint's") from error


def _agree(folder: Path, recorded_spec: ModelSpec, args: ModelSpec) -> None:
    """Raise ConfigError where manifest and args differ. Args lack biases by place and three of llama3's fields."""
    a, b = recorded_spec.to_dict(), args.to_dict()
    for values in (a, b):
        values["family"] = None
        values["rope"] = {k: v for k, v in values["rope"].items() if k in ("kind", "base", "factor")}
    differ = [f"{k}: {a[k]} in {manifest.NAME}, {b[k]} in its args" for k in a if a[k] != b[k]]
    refuse(differ, doing=f"{folder}: the manifest and the checkpoint's args differ", kind=ConfigError)
