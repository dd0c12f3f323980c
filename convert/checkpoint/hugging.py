"""A Hugging Face folder: its config read by the family's table, and its weights under the table's names."""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from mconv.convert.checkpoint import coverage as complete
from mconv.convert.checkpoint.wrappers import Known, plain_names
from mconv.convert.families import family_of
from mconv.convert.formats import hf
from mconv.convert.formats.tensors import Located
from mconv.convert.spelling import foreign
from mconv.convert.spelling.claim import CONFIG_KEY, refuse_claimed
from mconv.convert.spelling.derived import Buffer, buffer_of, notes_on
from mconv.convert.spelling.keys import Config
from mconv.convert.spelling.table import Family
from mconv.errors import ConfigError, FormatError, refuse
from mconv.spec import ModelSpec

CONFIG = "config.json"


def config(folder: Path, ignore: Collection[str], recorded: Mapping[str, Any]) -> tuple[Family, ModelSpec, Config]:
    """Return the family and spec that `config.json` says, and the keys that were passed over, with their values.

    Those may be that `ignore` names, and those of its manifest (`recorded`) that still have the value that was passed
    over. Raises ConfigError, with the folder's name, on a key that no row claims, and on one to ignore that a row claims.
    """
    values = hf.read_json(folder / CONFIG)
    try:
        family = family_of(values)
        spec, passed = family.read(values, ignore, recorded)
        refuse_claimed(CONFIG_KEY, (set(ignore) & values.keys()) - passed.keys())
    except ConfigError as error:
        raise ConfigError(
            f"{folder}/{error}" if str(error).startswith(CONFIG) else f"{folder / CONFIG}: {error}"
        ) from error
    return family, spec, passed


def weights(folder: Path, family: Family, spec: ModelSpec) -> tuple[dict[str, Located], tuple[str, ...]]:
    """Return every weight by the name that the table has for it, and what the user should know.

    Buffers that follow from the config are left out. Raises FormatError with the cause where transformers would draw
    weights at random, or leave weights out, with no more than a warning.
    """
    found = hf.open_folder(folder)
    buffers: dict[str, tuple[Buffer, Located]] = {}
    for name, where in found.items():
        if row := buffer_of(name, where, family.buffers):
            buffers[name] = (row, where)
    left = {name: where for name, where in found.items() if name not in buffers}
    complete.check_depth(folder, spec, len(left))
    known = known_by(family, spec)
    _check_foreign(folder, family, [name for name in left if not known(name)])
    try:
        names = plain_names(left, known)
    except FormatError as error:
        raise FormatError(f"{folder}: {error}") from error
    located = {names.of[name]: where for name, where in left.items()}
    if spec.tied_embeddings and family.embedding_key not in located and family.head_key in located:
        located[family.embedding_key] = located.pop(
            family.head_key
        )  # the two are one tensor, and it is stored as the head
    _check_head(folder, family, spec, located)
    notes = (*names.notes, *notes_on(spec, buffers))
    return located, tuple(f"{folder}: {note}" for note in notes)


def known_by(family: Family, spec: ModelSpec) -> Known:
    """Return a function: a stored name -> what the table calls it, or None. The base model's prefix may be absent."""
    names = {stored.key for stored in family.stored(spec)} | {family.head_key}

    def known(name: str) -> str | None:
        return next((full for full in (name, family.base + name) if full in names), None)

    return known


def _check_foreign(folder: Path, family: Family, names: Collection[str]) -> None:
    """Refuse tensors of another kind of model by what they are."""
    refuse(
        [f"{folder}: {line}" for line in foreign.named(sorted(names))],
        doing=f"{folder}: its tensors are not those of a {family.architecture}",
        kind=FormatError,
    )


def _check_head(folder: Path, family: Family, spec: ModelSpec, located: Mapping[str, Located]) -> None:
    """Refuse a model without its head."""
    wanted = {stored.key for stored in family.stored(spec)}
    if wanted - located.keys() == {family.head_key}:
        raise FormatError(
            f"{folder}: {family.head_key} is missing, so this is the model without its head (a {family.headless}); "
            "transformers would draw the head at random. If the head is the embedding, say so in config.json: "
            '"tie_word_embeddings": true; else take the whole model'
        )
