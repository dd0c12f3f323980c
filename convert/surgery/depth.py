"""Layers kept, repeated, reordered; heads tied and untied."""

import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

from mconv.convert.checkpoint.model import SourceModel
from mconv.convert.sources.renumbered import Headed, Renumbered
from mconv.convert.sources.source import Source
from mconv.convert.spelling.table import Logical
from mconv.convert.surgery.made import Origins, made
from mconv.errors import MconvError

TOY = 4
"""Layers of a toy, if no number is given."""


def chosen(
    depth: int, *, keep: str | None = None, repeat: str | None = None, order: str | None = None,
    toy: Sequence[int] | None = None,
) -> tuple[int, ...] | None:  # fmt: skip
    """Return the layers of a result, by the one option that says them; None without any. Raises MconvError."""
    if sum(x is not None for x in (keep, repeat, order, toy)) > 1:
        raise MconvError("give one of --keep, --repeat, --order and --toy, not several")
    if repeat is not None:
        return repeated(repeat, depth=depth)
    if toy is not None:
        return few(*(toy or [TOY]), depth=depth)
    listed = {"--keep": keep, "--order": order}
    found = (spans(text, option=option, depth=depth) for option, text in listed.items() if text is not None)
    return next((tuple(layer for span in one for layer in span) for one in found), None)


def spans(text: str, *, option: str, depth: int) -> list[range]:
    """Return the layers that a text such as "0-15,20-31" or "3" lists, a range for each. Raises MconvError."""
    return [_span(word.strip(), text, option=option, depth=depth) for word in text.split(",")]


def _span(word: str, text: str, *, option: str, depth: int) -> range:
    found = re.fullmatch(r"(\d{1,9})(?:-(\d{1,9}))?", word)
    if not found:
        raise MconvError(f"{option} {text[:80]!r}: {word!r} is neither a layer nor a range; write it as 0-15,20-31")
    first, last = int(found[1]), int(found[2] or found[1])
    if last < first:
        raise MconvError(f"{option} {text[:80]}: {word} runs backwards; list such layers one by one with --order")
    if last >= depth:
        raise MconvError(f"{option} {text[:80]}: the model has no layer {last}; its layers are 0 to {depth - 1}")
    return range(first, last + 1)


def repeated(text: str, *, depth: int) -> tuple[int, ...]:
    """Return all layers, each range that a text lists followed by itself once more. Raises MconvError."""
    found = sorted(spans(text, option="--repeat", depth=depth), key=lambda span: span.start)
    for one, other in pairwise(found):
        if other.start < one.stop:
            raise MconvError(f"--repeat {text}: its ranges overlap in layer {other.start}; say the result with --order")
    ends = {span.stop - 1: span for span in found}
    return tuple(layer for i in range(depth) for layer in (i, *ends.get(i, ())))


def few(count: int, *, depth: int) -> tuple[int, ...]:
    """Return so many layers, evenly from the first to the last; all of a model that has no more. Raises MconvError."""
    if count < 1:
        raise MconvError(f"--toy {count}: a model has at least one layer")
    if count >= depth:
        return tuple(range(depth))
    return tuple(i * (depth - 1) // max(1, count - 1) for i in range(count))


def relayered(base: SourceModel, layers: tuple[int, ...] | None, *, tied: bool | None = None) -> SourceModel:
    """Return a model with these layers of `base` (None: all), its head tied to the embedding or not. Raises MconvError.

    A head is tied only if it equals the embedding bit for bit, which is read for this.
    """
    source: Source = base.source
    recipe: dict[str, Any] = {"kind": "layers"}
    same: Mapping[Logical, Logical] = {tensor: tensor for tensor in source.tensors()}
    if layers is not None:
        source = renumbered = Renumbered(source, layers)
        recipe["layers"], same = _short(layers), renumbered.origins
    if tied is not None:
        _check_head(base, tied=tied)
        source = headed = Headed(source, tied)
        recipe["tied"], same = tied, {tensor: same[old] for tensor, old in headed.origins.items()}
    source.family.write_config(source.family.expressible(source.spec))
    used = {*same.values(), *([source.family.head] if tied else [])}
    return made(base, source, recipe, Origins(used=used, same=same))


def _check_head(base: SourceModel, *, tied: bool) -> None:
    """Raise MconvError where a head cannot be tied or untied."""
    option = "--tie" if tied else "--untie"
    if base.spec.tied_embeddings == tied:
        raise MconvError(f"{option}: the head of {base.path} is {'tied' if tied else 'untied'} already")
    if tied and (where := _unequal(base.source)) is not None:
        raise MconvError(
            f"--tie: head and embedding of {base.path} differ, first in row {where}; tied, the model would be another"
        )


def _unequal(source: Source) -> int | None:
    """Return the first row in which head and embedding differ, or None."""
    from mconv.convert.sources.checks import same_bits
    from mconv.convert.sources.read import slabs

    head, embedding = source.family.head, source.family.embedding
    if {*source.dtypes(head)} != {*source.dtypes(embedding)}:
        return 0
    for slab in slabs(source, embedding):
        found = source.pull(head, slab.box)
        if not same_bits(found, slab.tensor):
            same = (same_bits(one, other) for one, other in zip(found, slab.tensor, strict=True))
            return slab.box[0][0] + [*same].index(False)
    return None


def _short(layers: tuple[int, ...]) -> str:
    """Return layers as `--order` takes them, runs as ranges."""
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in _runs(layers))


def _runs(layers: tuple[int, ...]) -> Iterator[tuple[int, int]]:
    """Yield the first and the last layer of each run of successive numbers."""
    start = 0
    for i in range(1, len(layers) + 1):
        if i == len(layers) or layers[i] != layers[i - 1] + 1:
            yield layers[start], layers[i - 1]
            start = i
