"""Spellings: a program's names of a tensor with their enumerated axes, and the pattern that each name holds.

`model.layers.{l}.mlp.experts.{e}.gate_proj` is a name for each layer and each expert; `"(p[0] f) d"` what each holds.
"""

import re
from collections.abc import Iterator, Mapping
from itertools import product

from mconv.shard.axes import Axes
from mconv.shard.cut import Piece
from mconv.shard.pattern import Pattern, parse, piece

Spelt = str | Mapping[str, str]
"""The name of a tensor that is stored as it is; or each of several names, and the pattern of what it holds."""
AXIS = re.compile(r"\{([a-z])\}\.?")
"""An axis that a name enumerates, with its dot."""


def patterns(spelt: Spelt, axes: Axes) -> Mapping[str, Pattern]:
    """Return each name and what it holds of a tensor with these axes."""
    return {name: parse(text) for name, text in ({spelt: str(axes)} if isinstance(spelt, str) else spelt).items()}


def spelled(
    spelt: Spelt, axes: Axes, sizes: dict[str, int], *, layer: int | None, cut: str = "", rank: int = 0, of: int = 1
) -> Iterator[tuple[str, Piece]]:
    """Yield every name of a tensor of one layer, and the piece of it that `rank` of `of` stores under that name.

    `axes`: the weight's, or fewer.
    """
    for name, pattern in patterns(spelt, axes).items():
        inner = [axis for axis in AXIS.findall(name) if axis in axes.names]
        for numbers in product(*(range(sizes[axis]) for axis in inner)):
            index = dict(zip(inner, numbers, strict=True))
            own = pattern.only(axes.names)
            held = own.at(index) if index else own
            yield name.format(l=layer, **index), piece(axes, sizes, held, cut=cut, rank=rank, of=of)


def stacked(name: str) -> str:
    """Return the name of what stores all the axes that `name` enumerates, outermost and in their order."""
    return AXIS.sub("", name)
