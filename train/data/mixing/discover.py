"""List the prefixes under folders as `--data` takes them, with a weight for each."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mconv.errors import FormatError
from mconv.train.data.mixing.prefixes import open_all, refuse_overlaps, under

BY = ("tokens", "sequences", "documents")
"""What weights may be in proportion to."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A prefix, and its share of all that was found."""

    prefix: Path
    tokens: int
    sequences: int
    documents: int
    dtype: str
    conversations: bool
    weight: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Listing:
    """The prefixes that were found, and those that are too short to be used."""

    entries: tuple[Entry, ...]
    too_short: tuple[Path, ...] = ()


def discover(paths: Sequence[Path], *, by: str = "tokens", seq_length: int | None = None) -> Listing:
    """Return all prefixes under `paths`, each path's in the order of their names, weighted in proportion to `by`.

    With `seq_length`, a prefix of running text that is too short for one sample is left out, because megatron-core stops
    at it. Raises FormatError on a folder that is missing or has no prefix, and on half a pair.
    """
    groups = [under(path) for path in paths]
    refuse_overlaps(groups, "searching")
    found = open_all(name for group in groups for name in group)
    short = [one.path for one in found if seq_length and not one.talks and one.tokens < seq_length + 1]
    kept = [one for one in found if one.path not in short]
    if not kept:
        raise FormatError(f"none of {len(found)} prefixes has {(seq_length or 0) + 1} tokens, which one sample needs")
    sizes = [{"tokens": one.tokens, "sequences": one.text.sequences, "documents": one.documents}[by] for one in kept]
    return Listing(
        entries=tuple(
            Entry(
                prefix=one.path, tokens=one.tokens, sequences=one.text.sequences, documents=one.documents,
                dtype=one.dtype, conversations=one.talks, weight=size / sum(sizes),
            )
            for one, size in zip(kept, sizes, strict=True)
        ),
        too_short=tuple(short),
    )  # fmt: skip
