"""Bytes that a rank needs, counted from shapes: weights, gradients, optimizer state, and what backward needs of forward.

The first three are exact, but that replicas' shares of the optimizer differ by some elements of padding; the last is in
`activations.py`. Nothing here imports megatron-core.
"""

import math
from dataclasses import dataclass
from functools import lru_cache
from math import prod

from mconv.convert.dialects import mcore, spell
from mconv.convert.families import FAMILIES
from mconv.convert.peft.lora import FACTORS
from mconv.shard.layout import Layout
from mconv.spec import ModelSpec
from mconv.train.estimate.activations import FP32, Setting, activations
from mconv.train.model.trainable import ALL, Trainable

ADAM = 2
"""fp32 numbers that Adam keeps for each parameter."""
ALIGNED, BUCKET = 64, 128
"""Elements to which megatron-core pads each parameter and each buffer that replicas are to share."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rank:
    """One rank of a pipeline stage: its tensor-parallel ranks are alike."""

    stage: int
    layers: int
    parameters: int
    """Parameters that the rank holds, including padding and copies, as Megatron prints them."""
    trained: int
    """Parameters of the rank that have a gradient."""
    weights: int
    gradients: int
    optimizer: int
    activations: int
    """The most bytes of activations at one time, `again` included."""
    again: int
    """The most bytes that backward recomputes at one time."""
    step: int
    """Memory that the optimizer needs while it steps, when activations are gone: torch's AdamW takes the square roots of
    all second moments at once on a GPU."""

    @property
    def peak(self) -> int:
        """Return the bytes at the fullest moment of an iteration: in the backward pass, or in the optimizer's step."""
        return self.weights + self.gradients + self.optimizer + max(self.activations, self.step)

    @property
    def total(self) -> int:
        """Return the bytes of weights, gradients, optimizer state and activations."""
        return self.weights + self.gradients + self.optimizer + self.activations


def ranks(spec: ModelSpec, layout: Layout, setting: Setting) -> list[Rank]:
    """Return the memory of the first tensor-parallel rank of each stage."""
    return [_rank(spec, layout, setting, stage, held) for stage, held in enumerate(_held(spec, layout, setting.trains))]


def count(spec: ModelSpec, layout: Layout) -> int:
    """Return the number of parameters that a checkpoint stores: the vocabulary padded, nothing twice."""
    (held,) = _held(spec, Layout(padded_vocab=layout.padded_vocab), ALL)
    return sum(one.elements for one in held)


def least(layout: Layout, setting: Setting, *, count: int, trained: int) -> float:
    """Return what the fullest rank of a model of so many parameters has at least: an even share, without activations."""
    shared = setting.replicas if setting.distributed_optimizer else 1
    state = FP32 * (setting.moments + (setting.itemsize < FP32)) * trained / shared
    return (setting.itemsize * count + FP32 * trained + state) / (layout.tp * layout.pp)


def trained(spec: ModelSpec, trains: Trainable, *, padded_vocab: int | None = None) -> int:
    """Return the number of parameters that have a gradient, over a whole model, without padding if not given."""
    (held,) = _held(spec, Layout(padded_vocab=padded_vocab or spec.vocab_size), trains)
    return sum(one.elements for one in held if one.trained)


@dataclass(frozen=True, slots=True)
class Held:
    """A tensor of one rank."""

    layer: int | None
    elements: int
    trained: bool


@lru_cache(maxsize=256)  # a search for layouts comes back to each
def _held(spec: ModelSpec, layout: Layout, trains: Trainable) -> list[list[Held]]:
    """Return the tensors that one rank of each stage holds, adapters included."""
    family = FAMILIES[spec.family]
    real = set(family.logicals(spec))  # biases that megatron-core has on top stay zero, without gradient
    found: list[list[Held]] = [[] for _ in range(layout.pp)]
    for place, _, logical in spell.rank_tensors(mcore.DIALECT, family, spec, layout):
        piece = spell.rank_piece(mcore.DIALECT, family, spec, layout, logical, 0)
        trained = logical in real and trains.has(logical)
        found[place.stage].append(Held(logical.layer, prod(piece.shape), trained))
        if logical.leaf == "weight":
            factors = _factors(spec, layout, trains, logical.row)
            found[place.stage] += [Held(logical.layer, n, True) for n in factors]
    return found


def _factors(spec: ModelSpec, layout: Layout, trains: Trainable, row: str) -> list[int]:
    """Return the number of elements of each factor of the adapters of one row in one layer, on one rank."""
    rank = trains.adapter.width if trains.adapter else 0
    return [
        prod(linear.share(factor, rank=rank, sizes=spec.sizes, tp=layout.tp))
        for linear in trains.adapters(spec, row)
        for factor in FACTORS
    ]


def _rank(spec: ModelSpec, layout: Layout, setting: Setting, stage: int, held: list[Held]) -> Rank:
    trained = [one.elements for one in held if one.trained]
    count, buffered = sum(one.elements for one in held), _buffered(trained, setting)
    half = setting.itemsize < FP32
    shared = setting.replicas if setting.distributed_optimizer else 1
    kept, again = activations(spec, layout, setting, stage)
    return Rank(
        stage=stage,
        layers=len({one.layer for one in held if one.layer is not None}),
        parameters=count,
        trained=sum(trained),
        weights=setting.itemsize * (count - sum(trained) + buffered),
        gradients=FP32 * buffered,
        optimizer=FP32 * (setting.moments + half) * sum(trained) // shared,
        activations=round(kept + again),
        again=round(again),
        step=0 if setting.cpu or setting.moments < ADAM else FP32 * sum(trained) // shared,
    )


def _buffered(trained: list[int], setting: Setting) -> int:
    """Return the elements of the gradient buffer, which is padded where replicas share the optimizer's work."""
    if not setting.distributed_optimizer:
        return sum(trained)
    return _up(sum(_up(n, ALIGNED) for n in trained), math.lcm(setting.replicas, BUCKET))


def _up(number: int, multiple: int) -> int:
    return math.ceil(number / multiple) * multiple
