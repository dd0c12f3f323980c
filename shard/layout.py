"""A layout: tensor and pipeline parallel sizes and vocabulary padding, with their checks."""

from collections.abc import Iterable
from dataclasses import dataclass

from mconv.errors import LayoutError
from mconv.shard.axes import Axes
from mconv.shard.cut import can_share
from mconv.shard.stages import EVEN, Uneven, stage_layers


@dataclass(frozen=True, slots=True, kw_only=True)
class Grid:
    """Tensor and pipeline parallel sizes."""

    tp: int = 1
    """Ranks that share each matrix (tensor parallel)."""
    pp: int = 1
    """Stages that share the layers (pipeline parallel)."""
    vpp: int = 1
    """Model chunks on each pipeline stage (1: not interleaved)."""

    def __post_init__(self) -> None:
        for name in ("tp", "pp", "vpp"):
            if getattr(self, name) < 1:
                raise LayoutError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if self.vpp > 1 and self.pp == 1:
            raise LayoutError(f"vpp {self.vpp} needs pp > 1: virtual chunks interleave pipeline stages")


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout(Grid):
    """A distribution of tensors over ranks: sizes, padding, and stages."""

    padded_vocab: int
    """Rows of the embedding as stored, over all tensor-parallel ranks."""
    uneven: Uneven = EVEN
    """Reasons for pipeline stages to have different numbers of layers."""

    def __post_init__(self) -> None:
        Grid.__post_init__(self)
        if self.padded_vocab % self.tp:
            raise LayoutError(f"padded vocabulary {self.padded_vocab} is not a multiple of tp {self.tp}")

    @property
    def ranks(self) -> list[tuple[int, int]]:
        """Return every (tp rank, stage)."""
        return [(t, p) for p in range(self.pp) for t in range(self.tp)]

    def stages(self, num_layers: int) -> dict[tuple[int, int], range]:
        """Return the layers of each (stage, chunk). Raises LayoutError if they cannot be shared so."""
        return stage_layers(num_layers, pp=self.pp, vpp=self.vpp, uneven=self.uneven)


AXES = {"g": "query groups", "f": "rows of the MLP", "e": "experts", "v": "tokens of the vocabulary"}
"""An axis that tp cuts -> what it counts."""


def padded_vocab(vocab_size: int, *, tp: int, multiple: int = 128) -> int:
    """Return the next multiple of `multiple` * tp: Megatron's rule (its `--make-vocab-size-divisible-by`)."""
    if multiple < 1:
        raise LayoutError(f"the vocabulary must be padded to a positive multiple, not {multiple}")
    return -(-vocab_size // (multiple * tp)) * multiple * tp


def check_tp(rows: Iterable[tuple[str, Axes, str]], sizes: dict[str, int], *, tp: int) -> list[str]:
    """Return a problem for each (name, axes, cut) that `tp` ranks cannot share: tensor, axis, size, and what would work.

    The vocabulary axis `v` is left out: it is padded until it can be shared.
    """
    cuttable = [(name, axes, cut) for name, axes, cut in rows if cut != "v" and cut in axes.names]
    bad = [(name, axes, cut) for name, axes, cut in cuttable if not can_share(axes, sizes, cut, tp)]
    if not bad:
        return []
    most = max(sizes["g"] * sizes["q"], *(sizes[cut] for _, _, cut in cuttable))
    fits = [n for n in range(1, most + 1) if all(can_share(axes, sizes, cut, n) for _, axes, cut in cuttable)]
    shown = ", ".join(map(str, fits[:12])) + (", ..." if len(fits) > 12 else "")
    cuts = {cut: [name for name, _, other in bad if other == cut] for _, _, cut in bad}
    return [
        f"tp {tp} does not divide {sizes[cut]} {AXES.get(cut, f'along {cut}')} ({', '.join(names)}); tp can be {shown}"
        for cut, names in cuts.items()
    ]
