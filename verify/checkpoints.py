"""The two checkpoints of a comparison, opened. What one leaves open about itself is taken from the other.

A comparison judges the claim that both are one model. So what a file cannot tell (its true vocabulary size under padding,
an architecture that its args only claim) is taken from the other checkpoint, and the report says so.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mconv.convert.checkpoint.model import Checkpoint, SourceModel
from mconv.convert.checkpoint.open import open_checkpoint
from mconv.convert.folders.ignored import ignored
from mconv.errors import AmbiguousCheckpoint

Hints = dict[str, Any]
"""Options of `open_checkpoint` as plain values; `ignore` holds lists of names."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Side:
    """One of the two checkpoints, with what a rank needs to open it again."""

    checkpoint: SourceModel
    hints: Hints
    assumed: tuple[str, ...] = ()
    """Sentences on facts that were assumed, or taken from the other checkpoint."""


def open_both(a: Path, b: Path, hints: Hints) -> tuple[Side, Side]:
    """Open two checkpoints; `hints` are about Megatron roots. Raises MconvError where neither has what is needed."""
    found: dict[Path, Side] = {}
    ambiguous: dict[Path, AmbiguousCheckpoint] = {}
    for path in (a, b):
        try:
            found[path] = _open(path, hints)
        except AmbiguousCheckpoint as error:
            ambiguous[path] = error
    for path, other in ((a, b), (b, a)):
        if path in ambiguous and other not in found:
            raise ambiguous[path]
        if path in ambiguous:
            found[path] = _open_like(path, hints, found[other].checkpoint, ambiguous[path])
    return found[a], found[b]


def _open(path: Path, hints: Hints) -> Side:
    is_hf = (path / "config.json").is_file()
    own = {k: v for k, v in hints.items() if v is not None and (k == "ignore" or not is_hf)}
    checkpoint = open_with(path, own)
    own.pop("iteration", None)  # the folder that was found is the iteration's
    return Side(checkpoint=checkpoint, hints=own, assumed=checkpoint.notes)


def open_with(path: Path, hints: Hints) -> Checkpoint:
    """Return the checkpoint at `path`, opened with plain values such as a rank receives."""
    return open_checkpoint(path, **{**hints, "ignore": ignored(**hints.get("ignore", {}))})


def _open_like(path: Path, hints: Hints, other: SourceModel, error: AmbiguousCheckpoint) -> Side:
    """Open an ambiguous checkpoint with the other one's vocabulary size or, if that is not enough, its whole config."""
    size = {"vocab_size": other.spec.vocab_size}
    try:
        side = _open(path, hints | size)
        note = f"{side.checkpoint.name} does not say its true vocabulary: {other.spec.vocab_size}, as {other.name} has"
    except AmbiguousCheckpoint:
        config = other.path / "config.json"
        if not config.is_file():
            raise error from None
        side = _open(path, hints | size | {"config": str(config)})
        note = f"{side.checkpoint.name} cannot be trusted about its architecture: that of {other.name} was taken"
    return Side(checkpoint=side.checkpoint, hints=side.hints, assumed=(*side.assumed, note))
