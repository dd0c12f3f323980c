"""Tables of a blend with one vocabulary, made again whole: which row of which model each token has."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from mconv.convert.blend.document import Token, Tokenizer
from mconv.convert.blend.models import own_of
from mconv.convert.blend.request import Request
from mconv.convert.blend.source import Blend, Merged
from mconv.convert.checkpoint.model import SourceModel
from mconv.convert.checkpoint.open import open_checkpoint
from mconv.convert.folders import tokens
from mconv.convert.sources.source import dims_of, dtype_of
from mconv.convert.surgery.made import passed
from mconv.convert.surgery.tokenizer import ids_of
from mconv.shard.axes import whole


@dataclass(frozen=True, slots=True)
class Tokens:
    """The tokens of a result and of the models that it is a blend of."""

    asked: Tokenizer
    new: Mapping[str, int]
    """Token -> row of the result."""
    known: Mapping[str, Mapping[str, int]]
    """Token -> row of each model, by the model's name."""


def tokens_of(model: SourceModel, request: Request) -> Tokens | None:
    """Return the tokens of a blend, None where its recipe leaves vocabularies as they are."""
    if (asked := request.recipe.tokenizer) is None:
        return None
    opened = {name: open_checkpoint(place.path, ignore=passed(model)) for name, place in request.places.items()}
    base = opened[str(request.recipe.base or request.recipe.models[0])]
    files = {name: _files(one) or _files(base) for name, one in opened.items()}
    known = {name: ids_of(found, of=opened[name].path) for name, found in files.items()}
    return Tokens(asked, ids_of(_files(model), of=model.path), known)


def _files(model: SourceModel) -> dict[str, Path]:
    return {name: path for name, path in model.side_files.items() if tokens.is_tokenizer(name)}


def tables(known: Tokens, blend: Blend, merged: Merged, *, base: str | None) -> list[Tensor]:
    """Return the table of each model as it is merged: its own rows, and those that the recipe gives it."""
    logical = merged.member.logical
    held, names = [], [str(name) for name, _ in merged.inputs]
    for name, _ in merged.inputs:
        own = own_of(blend.sources[name])
        held.append(own.pull(logical, whole(dims_of(own, logical))).flatten(1).double())
    dtype = dtype_of(blend.sources[merged.inputs[0][0]], logical)
    return [_table(known, names, held, at, merged.member.shape[0], base=base).to(dtype) for at in range(len(held))]


def _table(
    known: Tokens, names: Sequence[str], held: Sequence[Tensor], at: int, rows: int, *, base: str | None
) -> Tensor:
    """Return the table of one model in fp64."""
    out, own = torch.zeros(rows, held[at].shape[1], dtype=torch.float64), known.known[names[at]]
    kept = {row: own[token] for token, row in known.new.items() if token in own and not _told(known, token).force}
    out[list(kept)] = held[at][list(kept.values())]
    for token, row in known.new.items():
        if row not in kept:
            out[row] = _row(known, names, held, token, base=base)
    if len(known.new) < rows:
        out[len(known.new) :] = out[: len(known.new)].mean(0)
    return out


def _told(known: Tokens, token: str) -> Token:
    return known.asked.tokens.get(token, Token())


def _row(known: Tokens, names: Sequence[str], held: Sequence[Tensor], token: str, *, base: str | None) -> Tensor:
    """Return the row of a token that a model lacks: as the recipe says, else the base's, else the mean of all."""
    told, nothing = _told(known, token), torch.zeros(held[0].shape[1], dtype=torch.float64)
    if told.kind == "zero":
        return nothing
    if told.model is not None:
        own = known.known[str(told.model)]
        number = own[told.token or token] if told.token_id is None else told.token_id
        return held[names.index(str(told.model))][number]
    ids = {name: known.known[name].get(token) for name in names}
    found = {name: one[ids[name]] for name, one in zip(names, held, strict=True) if ids[name] is not None}
    if base in found:
        return found[base]
    return torch.stack(list(found.values())).mean(0) if found else nothing
