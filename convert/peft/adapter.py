"""A whole LoRA adapter in memory: its factors and what they add to the base's tensors."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import xxhash
from jaxtyping import Float
from torch import Tensor

from mconv.convert.folders.digests import combined
from mconv.convert.formats.dtype import in_torch
from mconv.convert.formats.mapped import bytes_of
from mconv.convert.formats.torch_dist import Global
from mconv.convert.peft.lora import FACTORS, Linear, linears, places, shapes, stacked_key
from mconv.convert.peft.settings import Settings
from mconv.convert.spelling.table import Family, Logical
from mconv.errors import FormatError, refuse
from mconv.shard.axes import Box, intersect, lengths, within
from mconv.spec import ModelSpec


@dataclass(frozen=True, slots=True)
class Replaced:
    """A part of a logical tensor that an adapter folder holds whole: a module of `modules_to_save`, or a bias."""

    key: str
    logical: Logical
    box: Box
    value: Tensor
    """One dimension for each elementary axis."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Adapter:
    """A whole adapter, unsharded: both factors of each module that has one, under PEFT's names."""

    settings: Settings
    family: Family
    spec: ModelSpec
    factors: Mapping[str, Tensor]
    """Rows and columns in the order of the logical tensors."""
    replaced: tuple[Replaced, ...] = ()
    """Tensors that replace the base's."""
    ignored: Mapping[str, Any] = field(default_factory=dict)
    """Keys of its config, and their values, that no rule claims and the user lets pass."""
    notes: tuple[str, ...] = ()
    """Notes for the user on what was assumed when it was read."""

    def __post_init__(self) -> None:
        """Refuse, all at once, factors that are missing, too many, or of another shape."""
        wanted = shapes(self.settings, self.family, self.spec)
        bad = [f"{key} is missing" for key in wanted if key not in self.factors]
        bad += [f"{key}: no linear of this model has it" for key in self.factors if key not in wanted]
        bad += [f"{key} is {tuple(have.shape)}; the model and the adapter's rank make it {wanted[key]}"
                for key, have in self.factors.items() if key in wanted and tuple(have.shape) != wanted[key]]  # fmt: skip
        every = {**self.factors, **{one.key: one.value for one in self.replaced}}
        bad += [f"{key} holds NaN or infinity" for key, have in every.items() if not bool(have.isfinite().all())]
        refuse(bad, doing="the adapter does not fit the model", kind=FormatError)

    def digest(self) -> str:
        """Return one digest of its settings and of everything that it adds or replaces."""
        every = {**self.factors, **{one.key: one.value for one in self.replaced}}
        hashed = {key: xxhash.xxh3_128(bytes_of(value.contiguous())).hexdigest() for key, value in every.items()}
        return combined({**hashed, "settings": json.dumps(self.settings.to_dict(), sort_keys=True)})

    def merged(self, logical: Logical, box: Box, base: Tensor) -> Tensor:
        """Return a box of W + scale * B A, a dimension for each elementary axis: in fp64, rounded once to W's dtype."""
        replaced = [one for one in self.replaced if one.logical == logical]
        known = places(self.family, self.spec)
        mine = [known[name] for name in self.settings.targets if known[name].row.name == logical.row]
        mine = [linear for linear in mine if logical.leaf == "weight" and self.settings.rank_of(linear.at(logical.layer))]
        if not (mine or replaced):
            return base
        wide = base.to(torch.float64, copy=True)
        for one in replaced:
            if both := intersect(one.box, box):
                wide[within(both, box)] = one.value[within(both, one.box)].double()
        for linear in mine:
            self._add(wide, linear, logical.layer, box)
        return wide.to(base.dtype)

    def _add(self, wide: Tensor, linear: Linear, layer: int | None, box: Box) -> None:
        """Add what one linear's adapter adds to a box of the tensor, where they meet."""
        mine = linear.box(self.spec.sizes)
        both = intersect(mine, box)
        if both is None:
            return
        split = len(linear.axes.groups[0])
        b = _cut(self.factors[linear.key(layer, "B")], mine[:split], both[:split])
        a = _cut(self.factors[linear.key(layer, "A")].t(), mine[split:], both[split:])
        wide[within(both, box)] += self.settings.scale_of(linear.at(layer)) * (b @ a.t()).view(lengths(both))


def _cut(factor: Float[Tensor, "fused r"], mine: Box, both: Box) -> Float[Tensor, "rows r"]:
    """The rows of a factor that a box has, fp64: `mine` are the ranges of the axes that are fused in its rows."""
    return factor.double().reshape(*lengths(mine), -1)[within(both, mine)].reshape(-1, factor.shape[1])


def reordered(linear: Linear, factor: str, stored: Tensor, sizes: dict[str, int], *, back: bool = False) -> Tensor:
    """Return a factor of Hugging Face's module with its outer axis in the logical tensor's order, or `back`.

    GPT-2's c_attn: stored rows of B are (s g h), all queries first; the logical tensor's are (g s h).
    """
    if not linear.reordered:
        return stored
    ours = linear.axes.groups[0 if factor == "B" else 1]
    theirs = [term.axis for term in linear.pattern.terms() if term.axis in ours]
    old, new = (ours, theirs) if back else (theirs, ours)
    rows = stored if factor == "B" else stored.t()
    fine = rows.reshape(*(sizes[axis] for axis in old), -1)
    moved = fine.permute(*(old.index(axis) for axis in new), len(old)).reshape(rows.shape)
    return (moved if factor == "B" else moved.t()).contiguous()


def whole_tensor(key: str, stored: Global) -> Tensor:
    """A global tensor out of its chunks; NaN, which no adapter may hold, where there is none."""
    out = torch.full(stored.shape, float("nan"), dtype=in_torch(stored.dtype))
    for chunk in stored.chunks:
        at = tuple(slice(start, start + size) for start, size in zip(chunk.offsets, chunk.shape, strict=True))
        out[at] = chunk.locate(key, stored.dtype).load()
    return out


def padded(factor: str, tensor: Tensor, width: int) -> Tensor:
    """Return a factor with zero rows of A, or columns of B, up to the rank `width`.

    They stay zero in training: each one's gradient is a product with the other's zeros.
    """
    more = width - tensor.shape[0 if factor == "A" else 1]
    return torch.nn.functional.pad(tensor, (0, 0, 0, more) if factor == "A" else (0, more))


def unstacked(settings: Settings, family: Family, spec: ModelSpec, stacks: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the factors of a checkpoint, layer by layer under PEFT's names, without what fills them up to `width`."""
    known, found, bad = linears(family, spec), {}, []
    for name in settings.targets:
        for factor in FACTORS:
            for layer, each in enumerate(torch.unbind(stacks[stacked_key(known[name], factor)])):
                rank, key = settings.rank_of(known[name].at(layer)), known[name].key(layer, factor)
                kept, rest = (each[:rank], each[rank:]) if factor == "A" else (each[:, :rank], each[:, rank:])
                bad += [f"{key}: it is not zero past its rank of {rank}"] if bool(rest.count_nonzero()) else []
                found.update({key: kept} if rank else {})
    refuse(bad, doing="the checkpoint is not of the adapter that its args describe", kind=FormatError)
    return found
