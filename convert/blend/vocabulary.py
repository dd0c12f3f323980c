"""One vocabulary for models with several tokenizers, as mergekit's `tokenizer` and `tokenizer_source` ask for it."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import Any

from mconv.convert.blend.document import Reference, Token
from mconv.convert.blend.recipe import Recipe, Slice
from mconv.convert.blend.templates import template_of
from mconv.convert.checkpoint.model import SourceModel
from mconv.convert.folders import tokens
from mconv.convert.formats.dtype import BY_NAME, of_torch
from mconv.convert.formats.jsonfile import read_json
from mconv.convert.sources.resized import NEW, Rows
from mconv.convert.sources.source import Source, dtype_of
from mconv.convert.sources.transplanted import Taken, Transplanted
from mconv.convert.spelling.table import Logical
from mconv.convert.surgery import tokenizer as t
from mconv.errors import ConfigError

Models = Mapping[Reference, SourceModel]
PLAIN = Token()


@dataclass(frozen=True, slots=True, kw_only=True)
class Vocabulary:
    """The tokens of a merged model, and those of the models that it is made of."""

    known: Mapping[Reference, Mapping[str, int]]
    """Token -> row of each model."""
    files: Mapping[str, Path]
    """The tokenizer that the result's is, or begins with."""
    old: Mapping[str, int]
    """Its tokens."""
    added: Mapping[str, int]
    """Tokens that are added to it, or that are tokens of it and become added ones."""
    flags: Mapping[str, t.Values]
    """How these are added."""
    held: Mapping[Reference, int]
    """Rows of each model."""
    rows: int
    """Rows of embedding and head, padding among them."""

    @property
    def new(self) -> dict[str, int]:
        """Token -> row of the result."""
        return {**self.old, **self.added}


def vocabulary_of(recipe: Recipe, models: Models) -> Vocabulary | None:
    """Return the vocabulary that a recipe asks for, None if it asks for none. Raises ConfigError."""
    if (told := recipe.tokenizer) is None:
        return None
    base = recipe.base or recipe.models[0]
    first = base if told.source in ("union", "base") else told.source
    if not isinstance(first, Reference) or first not in models:
        raise ConfigError(
            f"tokenizer: {first} is none of the models that are merged; give each of them its tokenizer before "
            f"(`mconv resize MODEL --tokenizer {first}`), or copy its files with --tokenizer"
        )
    files = {name: _tokenizer(model) for name, model in models.items()}
    known = {name: _ids(model, files[name] or files[base]) for name, model in models.items()}
    others = [name for name in models if name != first and files[name]] if told.source == "union" else []
    plain, flags = _joined(first, others, known, {name: t.flags_of(files[name]) for name in (first, *others)})
    wanted = dict.fromkeys([*plain, *flags, *told.tokens])
    added = {token: known[first].get(token, NEW) for token in wanted if token in flags or token not in known[first]}
    fresh = (token for token, id in added.items() if id == NEW)
    added |= {token: len(known[first]) + at for at, token in enumerate(fresh)}
    count, multiple = len({*known[first], *added}), told.pad_to_multiple_of or 1
    return Vocabulary(
        known=known, files=files[first], old=known[first], added=added,
        flags={token: flags.get(token, t.PLAIN) for token in added},
        held={name: model.spec.vocab_size for name, model in models.items()},
        rows=-(-count // multiple) * multiple,
    )  # fmt: skip


def _tokenizer(model: SourceModel) -> dict[str, Path]:
    return {name: path for name, path in model.side_files.items() if tokens.is_tokenizer(name)}


def _ids(model: SourceModel, files: tokens.Files) -> dict[str, int]:
    """Return the tokens of a model. Raises ConfigError where they do not number its first rows."""
    found = t.ids_of(files, of=model.path)
    if sorted(found.values()) != list(range(len(found))) or len(found) > model.spec.vocab_size:
        raise ConfigError(
            f"tokenizer: the ids of {model.path} are not 0 to {len(found) - 1}, or are more than its "
            f"{model.spec.vocab_size} rows; make both agree first (`mconv resize {model.path} --tokenizer FOLDER`)"
        )
    return dict(sorted(found.items(), key=lambda one: one[1]))


def _joined(
    first: Reference, others: Collection[Reference], known: Mapping[Reference, Mapping[str, int]],
    flags: Mapping[Reference, Mapping[str, t.Values]],
) -> tuple[list[str], dict[str, t.Values]]:  # fmt: skip
    """Return what other tokenizers have beyond the first: plain tokens, and added ones with how they are added."""
    plain = [token for name in others for token in known[name] if token not in flags[name] and token not in known[first]]
    added = {token: how for name in others for token, how in flags[name].items() if token not in flags[first]}
    return [token for token in plain if token not in added], added


# ---- rows ------------------------------------------------------------------------------------------------------------
def transplanted(recipe: Recipe, models: Models, vocabulary: Vocabulary) -> dict[Reference, Source]:
    """Return each model with the vocabulary of the result. Raises ConfigError where a token's row cannot be found."""
    numbers = {name: number for number, name in enumerate(models)}
    sources = tuple(model.source for model in models.values())
    family = next(iter(models.values())).family
    taken = {Logical(row.name, None, leaf): _taken(recipe, _slice(recipe, row.looked_up), vocabulary, numbers)
             for row in family.rows if not row.per_layer for leaf in ("weight", "bias")
             if row.axes_of(leaf).names[0] == "v"}  # fmt: skip
    return {
        name: Transplanted(
            model.source, Rows(origin=_origin(recipe, vocabulary, name)), others=sources, taken=taken,
            tokens=len(vocabulary.new), kind=_kind(recipe, sources),
        )
        for name, model in models.items()
    }  # fmt: skip


def _slice(recipe: Recipe, looked_up: bool) -> Slice:
    return recipe.slices[0 if looked_up else -1]


def _kind(recipe: Recipe, sources: Sequence[Source]) -> Any:
    """Return the dtype in which tables are merged: the recipe's, or one that holds those of all models."""
    import torch

    if recipe.dtype:
        return BY_NAME[recipe.dtype]
    return of_torch(reduce(torch.promote_types, (dtype_of(one, one.family.embedding) for one in sources)))


def _origin(recipe: Recipe, vocabulary: Vocabulary, name: Reference) -> list[int]:
    """Return the row that each row of a model is of its own, or NEW."""
    assert recipe.tokenizer is not None
    own, told = vocabulary.known[name], recipe.tokenizer.tokens
    found = [NEW] * vocabulary.rows
    for token, row in vocabulary.new.items():
        if not told.get(token, PLAIN).force:
            found[row] = own.get(token, NEW)
    return found


def _taken(recipe: Recipe, part: Slice, vocabulary: Vocabulary, numbers: Mapping[Reference, int]) -> Taken:
    """Return the rows of tokens that some model lacks, or that are forced: of which models they are the mean."""
    assert recipe.tokenizer is not None
    names, told = [one.model for one in part.inputs], recipe.tokenizer.tokens
    found = {}
    for token, row in vocabulary.new.items():
        if told.get(token, PLAIN).force or any(token not in vocabulary.known[name] for name in names):
            rows = _rows(token, told.get(token), names, recipe.base_of(part), vocabulary)
            found[row] = [(numbers[name], old) for name, old in rows]
    return found


def _rows(
    token: str, told: Token | None, names: Sequence[Reference], base: Reference | None, vocabulary: Vocabulary
) -> list[tuple[Reference, int]]:
    """Return the rows whose mean is that of a token: what the recipe says, else the base's, else of all that have it."""
    having = [(name, vocabulary.known[name][token]) for name in names if token in vocabulary.known[name]]
    if told is None:
        return next(([one] for one in having if one[0] == base), having)
    if told.kind == "zero":
        return []
    if told.model is None or told.model not in names:
        raise ConfigError(
            f"tokenizer.tokens.{token}: its source is {told.model or 'not said'}, and must be zero or one of "
            f"{', '.join(map(str, names))}"
        )
    own = vocabulary.known[told.model]
    old = told.token_id if told.token_id is not None else own.get(told.token or token)
    if old is None or old >= vocabulary.held[told.model]:
        raise ConfigError(f"tokenizer.tokens.{token}: {told.model} has no token {old or told.token or token}")
    return [(told.model, old)]


# ---- files -----------------------------------------------------------------------------------------------------------
def files_of(
    recipe: Recipe, models: Models, first: SourceModel, vocabulary: Vocabulary | None, room: Path
) -> dict[str, Path]:
    """Return the files that change with vocabulary or chat template; `room` is a folder for those that are new.

    `first` is the model whose other files the result has.
    """
    files = dict(vocabulary.files) if vocabulary else _tokenizer(first)
    values = _changed(first, vocabulary, files) if vocabulary else {}
    template = template_of(recipe.chat_template, [_tokenizer(model) for model in models.values()])
    if template is not None:
        config = values.get(tokens.CONFIG) or (read_json(files[tokens.CONFIG]) if tokens.CONFIG in files else {})
        values[tokens.CONFIG] = {**config, "chat_template": template}
        files = {name: path for name, path in files.items() if not name.startswith("chat_template")}
    return {**files, **t.write(values, room / "made")} if values or vocabulary else {}


def _changed(first: SourceModel, vocabulary: Vocabulary, files: tokens.Files) -> dict[str, t.Values]:
    """Return the files of a tokenizer with added tokens, and configs whose ids are another tokenizer's."""
    old, new = t.ids_of(_tokenizer(first) or files, of=first.path), vocabulary.new
    found: dict[str, t.Values] = {}
    if not old.items() <= new.items():
        configs = {name: read_json(first.side_files[name]) for name in t.CONFIGS if name in first.side_files}
        found = {name: t.moved(config, old, new, files) for name, config in configs.items()}
    if vocabulary.added:
        found |= t.added(files, vocabulary.added, of=first.path, flags=vocabulary.flags)
    return found
