"""Find the prefixes of token data under paths, and tell what each holds by its index."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mconv.errors import FormatError, refuse
from mconv.train.data.index import ROLE, TEXT, Indexed, open_index, with_ending
from mconv.train.data.mixing.join import Head
from mconv.train.data.record import Tokenized, read_record
from mconv.train.data.sources import search

PAIR = (".bin", ".idx")
RECORD = ".mconv.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Prefix:
    """A prefix of token data: running text, or conversations with a second pair of files for the roles.

    It holds no open file: a folder may hold more prefixes than files may be open.
    """

    path: Path
    heads: tuple[Head, ...]
    """The pairs of files, the tokens first."""
    documents: int
    """Number of documents; of sequences, where the writer marked no documents."""
    record: Tokenized | None = None

    @property
    def talks(self) -> bool:
        """True for conversations."""
        return len(self.heads) > 1

    @property
    def text(self) -> Head:
        """The pair of files with the tokens."""
        return self.heads[0]

    @property
    def tokens(self) -> int:
        return self.text.tokens

    @property
    def dtype(self) -> str:
        return self.text.dtype.name

    @property
    def bytes(self) -> int:
        """Size of the pairs of files."""
        return sum(head.bytes + head.index_bytes for head in self.heads)

    @property
    def files(self) -> list[Path]:
        """All files of the prefix, its record last if it has one."""
        record = with_ending(self.text.prefix, RECORD)
        return [with_ending(head.prefix, ending) for head in self.heads for ending in PAIR] + [record] * bool(self.record)

    def open(self, number: int = 0) -> Indexed:
        """Open the tokens, or the roles (1)."""
        return open_index(self.heads[number].prefix)

    def ending(self, file: Path) -> str:
        """Return what the name of a file, or of a pair of files, adds to the prefix: -text.bin, .idx, or nothing."""
        return file.name[len(self.path.name) :]


def open_prefix(path: Path) -> Prefix:
    """Return what a prefix, without -text and -role, names. Raises FormatError on what is missing, damaged or unequal."""
    talks = with_ending(path, f"{TEXT}.idx").is_file()
    found = [open_index(with_ending(path, ending)) for ending in ((TEXT, ROLE) if talks else ("",))]
    for other in found[1:]:
        if not np.array_equal(other.lengths, found[0].lengths):
            raise FormatError(f"{other.prefix} does not fit {found[0].prefix}: their lengths differ; make both again")
    return Prefix(
        path=path, heads=tuple(map(Head.of, found)), documents=len(found[0].ends) or len(found[0]),
        record=read_record(found[0].prefix),
    )  # fmt: skip


def under(path: Path, *, leaving_out: Sequence[Path] = ()) -> list[Path]:
    """Return the prefix that a path names, or all in the folder that it is, sorted, but none in `leaving_out`.

    Those are folders or prefixes. A prefix that links reach under several names is there once, under the first. Raises
    FormatError if there is none.
    """
    if not path.is_dir():
        return [_named(path)]
    texts, talks = search(path)
    out = {one.resolve() for one in leaving_out}
    places = {one: one.parent.resolve() / one.name for one in sorted([*texts, *talks])}
    found = [one for one, place in places.items() if out.isdisjoint([place, *place.parents])]
    if not found:
        raise FormatError(f"{path}: no prefix with .bin and .idx in this folder or under it")
    return list({real_path(one): one for one in reversed(found)}.values())[::-1]


def real_path(prefix: Path) -> Path:
    """Return where the tokens of a prefix lie, links followed: equal for two names of one prefix."""
    name = with_ending(prefix, ".bin")
    name = name if name.exists() else with_ending(prefix, f"{TEXT}.bin")
    return name.resolve()


def open_all(paths: Iterable[Path]) -> list[Prefix]:
    """Open prefixes. Raises FormatError where text and conversations are together, which no run reads at once."""
    found = [open_prefix(path) for path in paths]
    talks = [one.path for one in found if one.talks]
    if 0 < len(talks) < len(found):
        text = next(one.path for one in found if not one.talks)
        raise FormatError(f"{talks[0]} holds conversations and {text} running text; take one kind at a time")
    return found


def overlaps(groups: Sequence[Sequence[Path]]) -> list[str]:
    """Return a problem for each prefix that two groups share, links followed."""
    owner: dict[Path, tuple[int, Path]] = {}
    problems = []
    for number, group in enumerate(groups):
        for path in group:
            first, name = owner.setdefault(real_path(path), (number, path))
            if first != number:
                problems.append(f"{path} is {name} again; give it once")
    return problems


def _named(path: Path) -> Path:
    """Return the prefix that a path names: it may end in .bin, .idx, or one of the two endings of conversations."""
    prefix = path.with_name(path.name[:-4]) if path.name.endswith(PAIR) else path
    for ending in (TEXT, ROLE):
        outer = prefix.with_name(prefix.name.removesuffix(ending) or prefix.name)
        if outer != prefix and all(with_ending(outer, f"{one}.idx").is_file() for one in (TEXT, ROLE)):
            return outer
    if not with_ending(prefix, ".idx").is_file() and not with_ending(prefix, f"{TEXT}.idx").is_file():
        raise FormatError(f"{path}: no such folder, and no such prefix ({prefix}.idx is not there)")
    return prefix


def dtype_problems(found: Sequence[Prefix]) -> list[str]:
    """Return a problem for each pair of files whose ids have another type than those of the first prefix."""
    return [
        f"{head.prefix} holds {head.dtype}, {first.prefix} {first.dtype}; tokenize one of them again, with the "
        f"other's tokenizer"
        for one in found
        for head, first in zip(one.heads, found[0].heads, strict=True)
        if head.dtype != first.dtype
    ]


def refuse_overlaps(groups: Sequence[Sequence[Path]], doing: str) -> None:
    """Raise FormatError for all prefixes that two groups share."""
    refuse(overlaps(groups), doing=doing, kind=FormatError)
