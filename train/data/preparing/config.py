"""The file of `mconv data prepare`: its sections as dataclasses, read from YAML with every key and type checked."""

import dataclasses
import difflib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

from mconv.errors import ConfigError, refuse
from mconv.train.config import load, read, rules

Section = TypeVar("Section")
NAME = re.compile(r"[A-Za-z0-9][\w.-]*", re.ASCII)


@dataclass(frozen=True, kw_only=True)
class TextSet:
    """A set of texts."""

    sources: list[str]
    """Files, folders, patterns such as raw/*.jsonl.gz and datasets by name (hf://ORG/NAME), in this order."""
    split: str | None = None
    """Split of folders that `datasets` saved with several."""
    skip_unknown_files: bool = False
    """Leave out files of folders whose names say no format, instead of stopping."""
    key: str = "text"
    """Field of a record that holds the text."""
    weight: float | None = None
    """Share of the mixture's tokens, in proportion to the other sets' weights."""

    @staticmethod
    def problems(config: Any) -> Iterator[str]:
        """Yield the broken rules of this section."""
        yield from rules.positive(config, "weight")
        if not config.sources:
            yield "sources is empty"


@dataclass(frozen=True, kw_only=True)
class Dedup:
    """Duplicates within each set, which are left out; the first copy stays."""

    threshold: float = 0.85
    """Jaccard similarity from which documents are near-duplicates."""
    num_perm: int | None = None
    """Permutations of a signature, divided as text-dedup does; if not given, as many as find 99 % at the threshold."""
    ngram: int = 5
    """Words, or characters, of an n-gram."""
    unit: Literal["word", "character"] = "word"
    """What n-grams are made of; character is for languages without spaces between words."""
    verify: bool = True
    """Compare the n-grams of candidates, so that nothing below the threshold is left out."""
    seed: int = 42
    """Seed of the permutations."""

    @staticmethod
    def problems(config: Any) -> Iterator[str]:
        """Yield the broken rules of this section."""
        yield from rules.at_least_1(config, "num_perm ngram")
        yield from rules.each(config, "threshold", "more than 0 and at most 1", lambda value: 0 < value <= 1)


@dataclass(frozen=True, kw_only=True)
class Shuffle:
    """A random order of the documents of each set."""

    seed: int = 1234
    """Seed of the order."""
    buffer: float = 0.5
    """Memory to sort in, in GB. The order does not depend on it."""

    @staticmethod
    def problems(config: Any) -> Iterator[str]:
        """Yield the broken rules of this section."""
        yield from rules.positive(config, "buffer")
        yield from rules.not_negative(config, "seed")


@dataclass(frozen=True, kw_only=True)
class Tokenize:
    """The tokens of each set."""

    append_eod: bool = True
    """End each document in the tokenizer's EOS token."""
    prepend_bos: bool = False
    """Begin each document with the BOS token."""

    @staticmethod
    def problems(config: Any) -> Iterator[str]:
        """Return no broken rule: there is none."""
        return iter(())


@dataclass(frozen=True, kw_only=True)
class Mix:
    """The mixture of the sets by their weights."""

    exact: bool = True
    """Cut the tokens of a set between two documents, so that shares hold to about one document."""

    @staticmethod
    def problems(config: Any) -> Iterator[str]:
        """Return no broken rule: there is none."""
        return iter(())


@dataclass(frozen=True, kw_only=True)
class Top:
    """The keys of a file that are no sections."""

    out: str
    """Folder to write to: tokens/ and mixture/ are the results, work/ is what lies between."""
    tokenizer: str
    """Folder of the tokenizer, or a SentencePiece model."""
    workers: int = 1
    """Number of processes. The output does not depend on it."""
    on_bad_record: Literal["stop", "skip"] = "stop"
    """At a record that cannot be used: stop, or leave it out."""

    @staticmethod
    def problems(config: Any) -> Iterator[str]:
        """Yield the broken rules of these keys."""
        yield from rules.at_least_1(config, "workers")


@dataclass(frozen=True, kw_only=True)
class Preparation:
    """All that a file asks for."""

    top: Top
    sets: dict[str, TextSet]
    dedup: Dedup | None = None
    """None: duplicates stay."""
    shuffle: Shuffle | None = None
    """None: the order of the input."""
    tokenize: Tokenize = field(default_factory=Tokenize)
    mix: Mix = field(default_factory=Mix)

    @property
    def weights(self) -> dict[str, float]:
        """The weights of the sets that are mixed, by name; none where no set has one."""
        return {name: one.weight for name, one in self.sets.items() if one.weight is not None}


SECTIONS: Mapping[str, type] = {"dedup": Dedup, "shuffle": Shuffle, "tokenize": Tokenize, "mix": Mix}
"""Section of a file -> its fields. `true` stands for the defaults."""


def read_yaml(path: Path) -> Preparation:
    """Return what a YAML file asks for. Raises ConfigError for all unknown keys and wrong values at once."""
    values = load.mapping(path, named="CONFIG")
    problems: list[str] = []
    plain = {name: value for name, value in values.items() if name not in SECTIONS and name != "sets"}
    top = _section(Top, plain, "", problems, others=("sets", *SECTIONS))
    sections = {
        name: _section(kind, {} if values[name] is True else values[name], f"{name}.", problems)
        for name, kind in SECTIONS.items()
        if values.get(name) not in (None, False)
    }
    sets = _sets(values.get("sets"), problems)
    refuse([f"{path}: {problem}" for problem in problems], doing=f"reading {path}", kind=ConfigError)
    assert top
    return Preparation(top=top, sets=sets, **sections)  # type: ignore[arg-type]


def _sets(values: Any, problems: list[str]) -> dict[str, TextSet]:
    """Return the sets by name, with what is wrong added to `problems`."""
    if not isinstance(values, Mapping) or not values:
        problems.append("sets: give each set of texts by its name, with its sources")
        return {}
    problems += [
        f"sets.{name}: the name becomes a file's; use letters, digits, _, - and ."
        for name in values
        if not NAME.fullmatch(str(name))
    ]
    found = {str(name): _section(TextSet, one, f"sets.{name}.", problems) for name, one in values.items()}
    made = {name: one for name, one in found.items() if one}
    without = [name for name, one in made.items() if one.weight is None]
    if 0 < len(without) < len(made):
        problems.append(f"sets: give each a weight, or none; {', '.join(without)} has none")
    return made


def _section(
    kind: type[Section], values: Any, at: str, problems: list[str], *, others: tuple[str, ...] = ()
) -> Section | None:
    """Return a section of plain values; None, with what is wrong added to `problems`, where that cannot be."""
    if not isinstance(values, Mapping):
        problems.append(f"{at.rstrip('.')} is {values!r}; it must be a section of keys and values")
        return None
    fields: Any = dataclasses.fields(kind)  # type: ignore[arg-type]
    known = [one.name for one in fields]
    wrong = [f"unknown key {at}{name}{_hint(str(name), (*known, *others))}" for name in values if name not in known]
    needed = [one.name for one in fields if one.default is dataclasses.MISSING]
    wrong += [f"{at}{name} is missing: {read.texts([kind])[name]}" for name in needed if values.get(name) is None]
    given = {name: value for name, value in values.items() if name in known and value is not None}
    try:
        plain = read.typed(given, kind, read.texts([kind]), doing="reading a section")
    except ConfigError as error:
        wrong.append(f"{at}{error}")
    if not wrong:
        made = kind(**plain)
        wrong = [f"{at}{problem}" for problem in kind.problems(made)]  # type: ignore[attr-defined]
    problems += wrong
    return None if wrong else made


def _hint(name: str, known: tuple[str, ...]) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {close[0]}?" if close else f"; there are {', '.join(known)}"
