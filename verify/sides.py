"""The two checkpoints of a comparison: opened, and where one leaves a thing open about itself, the other says it.

The claim to be judged is that both are one model. So what a file cannot say (its true vocabulary among padding, an
architecture that its args only claim) is taken from the other side, and told: it is what is judged, not what is found.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mconv.convert.checkpoint import Checkpoint, SourceModel
from mconv.convert.ignored import ignored
from mconv.convert.opening import open_checkpoint
from mconv.errors import Unsaid

Said = dict[str, Any]
"""Options of `open_checkpoint`; of `ignore`, the lists of names."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Side:
    """One of the two."""

    checkpoint: SourceModel
    said: Said
    """With which a rank opens it again."""
    assumed: tuple[str, ...] = ()
    """What was taken from the other side, or had to be assumed when it was opened."""


def open_both(a: Path, b: Path, said: Said) -> tuple[Side, Side]:
    """Open two checkpoints; `said` is of Megatron roots. Raises MconvError where neither says what is needed."""
    found: dict[Path, Side] = {}
    left: dict[Path, Unsaid] = {}
    for path in (a, b):
        try:
            found[path] = _open(path, said)
        except Unsaid as error:
            left[path] = error
    for path, other in ((a, b), (b, a)):
        if path in left and other not in found:
            raise left[path]
        if path in left:
            found[path] = _open_by(path, said, found[other].checkpoint, left[path])
    return found[a], found[b]


def _open(path: Path, said: Said) -> Side:
    hugging = (path / "config.json").is_file()
    own = {k: v for k, v in said.items() if v is not None and (k == "ignore" or not hugging)}
    checkpoint = opened(path, own)
    own.pop("iteration", None)  # the folder that was found is the iteration's
    return Side(checkpoint=checkpoint, said=own, assumed=checkpoint.notes)


def opened(path: Path, said: Said) -> Checkpoint:
    """Return the checkpoint, opened with plain values as a rank's payload has them."""
    return open_checkpoint(path, **{**said, "ignore": ignored(**said.get("ignore", {}))})


def _open_by(path: Path, said: Said, other: SourceModel, error: Unsaid) -> Side:
    """Open what did not say all, with what the other side knows: its vocabulary; failing that, its whole config."""
    size = {"vocab_size": other.spec.vocab_size}
    try:
        side = _open(path, said | size)
        told = f"{side.checkpoint.name} does not say its true vocabulary: {other.spec.vocab_size}, as {other.name} has"
    except Unsaid:
        config = other.path / "config.json"
        if not config.is_file():
            raise error from None
        side = _open(path, said | size | {"config": str(config)})
        told = f"{side.checkpoint.name} cannot be trusted about its architecture: that of {other.name} was taken"
    return Side(checkpoint=side.checkpoint, said=side.said, assumed=(*side.assumed, told))
