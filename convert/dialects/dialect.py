"""The parts of a dialect: names, the order of rows, and the args that describe the architecture."""

from argparse import Namespace
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

from mconv.convert.dialects.arguments import Arguments
from mconv.convert.dialects.flags import Case
from mconv.convert.formats.tensors import Located
from mconv.convert.spelling.table import Row
from mconv.shard.layout import Layout
from mconv.shard.pattern import Pattern, parse
from mconv.spec import ModelSpec

Names = Mapping[str, tuple[str, ...]]
"""Row of a family's table -> what a rank's file calls it: the first is written, all are read."""


@runtime_checkable
class SpecOf(Protocol):
    """Reads the architecture out of a checkpoint's args and, where these are not to be trusted, its tensors.

    `vocab_size` is the true one where the args do not know it. `settled`: a config.json says what args may have wrong.
    """

    def __call__(
        self,
        args: Namespace,
        *,
        tensors: Mapping[str, Located] | None = None,
        vocab_size: int | None = None,
        settled: bool = False,
    ) -> ModelSpec: ...


@runtime_checkable
class ArgsOf(Protocol):
    """Writes the args of a checkpoint."""

    def __call__(self, spec: ModelSpec, layout: Layout, *, dtype: str, iteration: int = 0) -> Namespace: ...


Flags = Callable[[Case], tuple[list[str], list[str]]]
"""The flags to load a checkpoint with, ready to paste, and warnings where no flag is right."""


def no_more(spec: ModelSpec) -> ModelSpec:
    """The spec itself: this dialect can store just the biases that there are."""
    return spec


def nothing(spec: ModelSpec, layout: Layout) -> list[str]:
    """This dialect can hold any model at any layout."""
    return []


def no_assumptions(args: Namespace, tensors: Mapping[str, Located]) -> tuple[str, ...]:
    """The args of this dialect say all that there is to say."""
    return ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Dialect:
    """One Megatron's way to spell the tensors of a rank's file."""

    name: str
    program: str
    """Whose it is."""
    arguments: Arguments
    """Every arg that its checkpoints may have, and what it decides."""
    names: Callable[[ModelSpec], Names]
    spec_of: SpecOf
    args_of: ArgsOf
    flags: Flags
    layout_of: Callable[[Namespace, Mapping[str, Located] | None], Layout]
    patterns: Mapping[str, str] = field(default_factory=dict)
    """Row -> how this dialect orders it (`shard/pattern.py`), where it does so otherwise than the row itself."""
    stored_spec: Callable[[ModelSpec], ModelSpec] = no_more
    """The spec with the biases that the dialect must store; one that is added is zero in a conversion."""
    tied_name: str = "head"
    """The row whose name the last stage's copy of a tied embedding has."""
    nests: tuple[str, ...] = ()
    """Prefixes of names that are dictionaries of their own in the file."""
    refusals: Callable[[ModelSpec, Layout], list[str]] = nothing
    """A function to what a model or a layout has that this program cannot compute."""
    least_version: float | None = None
    """`checkpoint_version` below which rows are ordered otherwise."""
    distinguishing_names: tuple[str, ...] = ()
    """Ends of names that only this dialect, of those with the same other names, has."""
    own_args: tuple[str, ...] = ()
    """Args that only this dialect, of those with the same names, has."""
    untrusted_args: bool = False
    """True where args may hold some process's flags in place of the model's values."""
    assumptions: Callable[[Namespace, Mapping[str, Located]], tuple[str, ...]] = no_assumptions
    """A function to the notes on what the args leave open and was assumed; shown where nothing else settles it."""

    def pattern(self, row: Row) -> Pattern:
        """Return how this dialect orders a row; an MLP without a gate has no halves to exchange."""
        plain, own = parse(row.axes), parse(self.patterns.get(row.name, row.axes))
        return own if {term.axis for term in own.terms()} == {term.axis for term in plain.terms()} else plain
