"""Another vocabulary for a model: its size or tokenizer, where each row comes from, the files that then agree."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mconv.convert.checkpoint.model import SourceModel
from mconv.convert.folders import sidecar, tokens
from mconv.convert.formats.jsonfile import read_json
from mconv.convert.sources.resized import NEW, Resized, Rows
from mconv.convert.surgery import tokenizer as t
from mconv.convert.surgery.made import Origins, made
from mconv.errors import MconvError, refuse

COPY, SUBWORDS = "copy:", "subword-mean"
INITS = ("mean", "normal", "zeros", SUBWORDS)


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """A vocabulary as it is asked for."""

    tokenizer: Path | None = None
    """The folder of another tokenizer."""
    size: int | None = None
    tokens: tuple[str, ...] = ()
    """Tokens to add to the tokenizer."""
    init: str = "mean"
    seed: int = 0

    def __post_init__(self) -> None:
        if not (self.tokenizer or self.size is not None or self.tokens):
            raise MconvError("give --tokenizer, --vocab-size or --tokens: nothing else says the new vocabulary")
        if self.init not in INITS and not (self.init.startswith(COPY) and self.init != COPY):
            raise MconvError(f"--init {self.init[:80]!r} is not one of {', '.join(INITS)}, copy:TOKEN")
        if self.size is not None and not 0 < self.size <= t.MOST:
            raise MconvError(f"--vocab-size {self.size}: a vocabulary has between 1 and {t.MOST} rows")


@dataclass(frozen=True, slots=True, kw_only=True)
class Vocabulary:
    """The tokenizers before and after, and how many rows the embedding gets."""

    before: tokens.Files
    old: Mapping[str, int]
    """Token -> id before; empty if nothing asks for it."""
    files: tokens.Files
    """The tokenizer's files after, without what is added."""
    new: Mapping[str, int]
    """Token -> id after, the added ones too."""
    added: Mapping[str, int]
    ids: int
    """One more than the highest id after."""
    rows: int

    @classmethod
    def of(cls, base: SourceModel, asked: Request) -> "Vocabulary":
        """Return the vocabulary that a model gets. Raises MconvError where it cannot."""
        before = _tokenizer(base.side_files)
        files = _given(asked.tokenizer) if asked.tokenizer else before
        named = bool(asked.tokenizer or asked.tokens or asked.init.startswith((COPY, SUBWORDS)))
        old = t.ids_of(before, of=base.path) if named else {}
        known = t.ids_of(files, of=asked.tokenizer) if asked.tokenizer else old
        count = tokens.count(files)
        first = max(count.ids if count else 0, t.highest(known.values()))
        added = {token: first + i for i, token in enumerate(one for one in asked.tokens if one not in known)}
        ids = first + len(added)
        rows = asked.size or (ids if asked.tokenizer else max(ids, base.spec.vocab_size))
        if rows < ids:
            raise MconvError(
                f"--vocab-size {rows}: the tokenizer of {asked.tokenizer or base.path} has {ids} ids, each of which "
                "needs a row; give as many, or --tokenizer a folder with a smaller tokenizer"
            )
        return cls(before=before, old=old, files=files, new={**known, **added}, added=added, ids=ids, rows=rows)


def resized(base: SourceModel, asked: Request, room: Path) -> SourceModel:
    """Return a model with another vocabulary; `room` is a folder for the files that change. Raises MconvError."""
    vocabulary = Vocabulary.of(base, asked)
    origin = _origin(base, asked, vocabulary)
    fresh = [row for row, old in enumerate(origin) if old == NEW]
    parts = parts_of(base, asked, vocabulary, fresh, moved=bool(asked.tokenizer))
    fill = asked.init if asked.init in ("normal", "zeros") else "mean"
    rows = Rows(origin=origin, parts=parts, fill=fill, seed=asked.seed)  # type: ignore[arg-type]
    replaced = _files(base, asked, vocabulary, room)
    recipe: dict[str, Any] = {
        "kind": "resize", "rows": vocabulary.rows, "kept": len(origin) - len(fresh), "init": asked.init,
        "seed": asked.seed, "tokens": dict(vocabulary.added), "digest": rows.fingerprint(),
        **({"tokenizer": asked.tokenizer.name} if asked.tokenizer else {}),
    }  # fmt: skip
    source, tensors = Resized(base.source, rows), base.source.tensors()
    origins = Origins(used=tensors, same={tensor: tensor for tensor in tensors if not source.has_rows(tensor)})
    return made(base, source, recipe, origins, notes=_notes(base, asked, vocabulary, fresh, parts), replaced=replaced)


def _tokenizer(files: tokens.Files) -> dict[str, Path]:
    return {name: path for name, path in files.items() if tokens.is_tokenizer(name)}


def _given(folder: Path) -> dict[str, Path]:
    """Return the files of a tokenizer's folder. Raises MconvError if it has none."""
    files = _tokenizer(sidecar.look(folder).files)
    if not tokens.makes_tokenizer(files):
        raise MconvError(
            f"--tokenizer {folder}: no tokenizer files there ({', '.join(tokens.VOCABULARY[:2])} or the like)"
        )
    return files


# ---- rows ------------------------------------------------------------------------------------------------------------
def _origin(base: SourceModel, asked: Request, vocabulary: Vocabulary) -> list[int]:
    """Return the base's row of each new row: by the token's string if the tokenizer is another, else by number."""
    held, old, added = base.spec.vocab_size, vocabulary.old, {*vocabulary.added.values()}
    if not asked.tokenizer:
        return [row if row < held and row not in added else NEW for row in range(vocabulary.rows)]
    origin = [NEW] * vocabulary.rows
    for token, row in vocabulary.new.items():
        if token in old and old[token] < held:
            origin[row] = old[token]
    return origin


def parts_of(
    base: SourceModel, asked: Request, vocabulary: Vocabulary, fresh: Sequence[int], *, moved: bool
) -> dict[int, Sequence[int]]:
    """Return the rows of the base that a new row is the mean of, where the rule is of that kind.

    `moved`: the tokenizer is another one, whose tokens stand for their texts.
    """
    if asked.init.startswith(COPY):
        token = asked.init.removeprefix(COPY)
        if not vocabulary.old.get(token, t.MOST) < base.spec.vocab_size:
            raise MconvError(f"--init {asked.init}: the tokenizer of {base.path} has no token {token!r}")
        return dict.fromkeys(fresh, (vocabulary.old[token],))
    if asked.init != SUBWORDS:
        return {}
    by_id = {id: token for token, id in vocabulary.new.items()}
    new, texts = vocabulary.files if moved else None, {row: by_id[row] for row in fresh if row in by_id}
    own = {row: token for row, token in texts.items() if token in vocabulary.added}
    read = {row: token for row, token in texts.items() if token not in vocabulary.added}
    found = t.subwords(own, old=vocabulary.before, new=None, of=base.path)
    found |= t.subwords(read, old=vocabulary.before, new=new, of=base.path)
    return {row: ids for row, ids in found.items() if ids and max(ids) < base.spec.vocab_size}


def _notes(
    base: SourceModel, asked: Request, vocabulary: Vocabulary, fresh: Sequence[int], parts: Mapping[int, Sequence[int]]
) -> list[str]:
    """Return what the user should know of the rows."""
    held, kept = base.spec.vocab_size, vocabulary.rows - len(fresh)
    how = f" ({asked.init}{f', seed {asked.seed}' * (asked.init == 'normal')})" * bool(fresh)
    matched = ", matched by the tokens' strings" if asked.tokenizer else ""
    notes = [f"vocabulary: {held:,} -> {vocabulary.rows:,} rows; {kept:,} as they were{matched}, {len(fresh):,} new{how}"]
    if vocabulary.added:
        notes.append("tokens added: " + ", ".join(f"{token} {id}" for token, id in [*vocabulary.added.items()][:8]))
    if there := [token for token in asked.tokens if token not in vocabulary.added]:
        notes.append(f"the tokenizer has {', '.join(there[:8])} already: nothing is added for them")
    if reserve := [id for id in vocabulary.added.values() if id < held]:
        notes.append(f"{len(reserve)} of the added tokens take rows that were in reserve; these are new rows, too")
    if asked.init == SUBWORDS and (plain := len(fresh) - len(parts)):
        notes.append(
            f"{plain:,} of the new rows have no subwords that the old tokenizer knows: these are the mean of all rows"
        )
    return notes


# ---- files -----------------------------------------------------------------------------------------------------------
def _files(base: SourceModel, asked: Request, vocabulary: Vocabulary, room: Path) -> dict[str, Path]:
    """Return the files that change: a tokenizer whole, and configs whose ids are moved. Raises MconvError."""
    side = base.side_files
    configs = {name: read_json(side[name]) for name in t.CONFIGS if name in side}
    values: dict[str, t.Values] = {}
    if asked.tokenizer:
        values = {
            name: t.moved(config, vocabulary.old, vocabulary.new, vocabulary.files) for name, config in configs.items()
        }
    named = (
        (name, key, max(ids)) for name, one in {**configs, **values}.items() for key, ids in t.token_ids(one).items()
    )
    beyond = [f"{name}: {key} is {id}, which --vocab-size {vocabulary.rows} leaves no row for; change it there first"
              for name, key, id in named if vocabulary.rows <= id < base.spec.vocab_size]  # fmt: skip
    refuse(beyond, doing=f"{base.path} cannot have a vocabulary of {vocabulary.rows}")
    if vocabulary.added:
        values |= t.added(vocabulary.files, vocabulary.added, of=asked.tokenizer or base.path)
    changed = asked.tokenizer or vocabulary.added
    return {**(vocabulary.files if changed else {}), **t.write(values, room / "made")}
