"""What a dialect is made of: names, the order of rows, and which of its args say which architecture."""

from argparse import Namespace
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from mconv.convert.formats.tensors import Located
from mconv.shard.axes import Axes
from mconv.shard.cut import Piece
from mconv.shard.layout import Layout
from mconv.spec import ModelSpec

Names = Mapping[str, tuple[str, ...]]
"""Row of a family's table -> what a rank's file calls it: the first is written, all are read."""


@runtime_checkable
class SpecOf(Protocol):
    """Reads the architecture out of a checkpoint's args; `vocab_size` is the true one where the args do not know it."""

    def __call__(
        self, args: Namespace, *, tensors: Mapping[str, Located], vocab_size: int | None = None
    ) -> ModelSpec: ...


@runtime_checkable
class ArgsOf(Protocol):
    """Writes the args of a checkpoint."""

    def __call__(self, spec: ModelSpec, layout: Layout, *, dtype: str, iteration: int = 0) -> Namespace: ...


def as_it_is(row: str, axes: Axes, spec: ModelSpec, piece: Piece) -> Piece:
    """Rows in the order of the logical tensor."""
    return piece


def no_more(spec: ModelSpec) -> ModelSpec:
    """The spec itself: this dialect can store just the biases that there are."""
    return spec


@dataclass(frozen=True, slots=True, kw_only=True)
class Dialect:
    """One Megatron's way to spell the tensors of a rank's file."""

    name: str
    names: Callable[[ModelSpec], Names]
    spec_of: SpecOf
    args_of: ArgsOf
    layout_of: Callable[[Namespace, Mapping[str, Located]], Layout]
    arrange: Callable[[str, Axes, ModelSpec, Piece], Piece] = as_it_is
    """A rank's share of a row, with its blocks moved to where this dialect stores them."""
    stored_spec: Callable[[ModelSpec], ModelSpec] = no_more
    """The spec with the biases that the dialect must store; one that is added is zero in a conversion."""
    tied_name: str = "head"
    """The row whose name the last stage's copy of a tied embedding has."""
    nests: tuple[str, ...] = ()
    """Prefixes of names that are dictionaries of their own in the file."""
