"""Bytes that a rank needs, counted from shapes: weights, gradients, optimizer state, and what backward needs of forward.

The first three are exact, but that replicas' shares of the optimizer differ by some elements of padding. Activations are
what autograd keeps of a micro batch, module by module, with the modules that `engine.py` builds; what an operation needs
only while it runs is on top. Nothing here imports megatron-core.
"""

import math
from dataclasses import dataclass
from math import prod

from mconv.convert import spell
from mconv.convert.dialects import mcore
from mconv.convert.families import FAMILIES
from mconv.convert.table import Logical
from mconv.shard.layout import Layout
from mconv.shard.stages import stage_layers
from mconv.spec import ModelSpec

FP32 = 4
ALIGNED, BUCKET = 64, 128
"""Elements to which megatron-core pads each parameter and each buffer that replicas are to share."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """What memory depends on beside the model and its layout."""

    seq_length: int
    micro_batch_size: int
    micro_batches: int
    """Of one step, on one replica."""
    replicas: int = 1
    itemsize: int = FP32
    """Bytes of a weight in forward and backward."""
    sequence_parallel: bool = False
    distributed_optimizer: bool = False
    moments: int = 2
    """fp32 numbers that the optimizer keeps for each parameter: two for Adam, one for sgd with momentum."""
    hidden_dropout: bool = False
    recompute: str = "none"
    """`none`, `selective` or `full`."""
    recompute_modules: tuple[str, ...] = ("core_attn",)
    recompute_layers: int = 1
    """With `full`: layers in a unit, or, `by_block`, layers of each chunk that are computed again."""
    by_block: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Rank:
    """One rank of a pipeline stage: its tensor-parallel ranks are alike."""

    stage: int
    layers: int
    parameters: int
    """Those that it holds, padding and copies among them, as Megatron prints them."""
    weights: int
    gradients: int
    optimizer: int
    activations: int
    """At most at one time, `again` among them."""
    again: int
    """What backward makes anew at one time, of what was not kept."""

    @property
    def total(self) -> int:
        """Bytes of all four."""
        return self.weights + self.gradients + self.optimizer + self.activations


def ranks(spec: ModelSpec, layout: Layout, setting: Setting) -> list[Rank]:
    """The first tensor-parallel rank of each stage."""
    shares = _shares(spec, layout)
    return [_rank(spec, layout, setting, stage, shares[stage]) for stage in range(layout.pp)]


def _shares(spec: ModelSpec, layout: Layout) -> list[list[tuple[Logical, int]]]:
    """Of each stage, the tensors that one of its ranks holds and their elements."""
    family = FAMILIES[spec.family]
    found: list[list[tuple[Logical, int]]] = [[] for _ in range(layout.pp)]
    for place, _, logical in spell.rank_tensors(mcore.DIALECT, family, spec, layout):
        piece = spell.rank_piece(mcore.DIALECT, family, spec, layout, logical, 0)
        found[place.stage].append((logical, prod(piece.shape)))
    return found


def _rank(spec: ModelSpec, layout: Layout, setting: Setting, stage: int, held: list[tuple[Logical, int]]) -> Rank:
    real = set(FAMILIES[spec.family].logicals(spec))  # biases that megatron-core has on top stay zero, without gradient
    trained = [count for logical, count in held if logical in real]
    count, buffered = sum(n for _, n in held), _buffered(trained, setting)
    half = setting.itemsize < FP32
    shared = setting.replicas if setting.distributed_optimizer else 1
    kept, again = _activations(spec, layout, setting, stage)
    return Rank(
        stage=stage,
        layers=len({logical.layer for logical, _ in held if logical.layer is not None}),
        parameters=count,
        weights=setting.itemsize * (count - sum(trained) + buffered),
        gradients=FP32 * buffered,
        optimizer=FP32 * (setting.moments + half) * sum(trained) // shared,
        activations=round(kept + again),
        again=round(again),
    )


def _buffered(trained: list[int], setting: Setting) -> int:
    """Elements of the buffer that gradients lie in; padded where replicas share the optimizer's work."""
    if not setting.distributed_optimizer:
        return sum(trained)
    return _up(sum(_up(n, ALIGNED) for n in trained), math.lcm(setting.replicas, BUCKET))


def _up(number: int, multiple: int) -> int:
    return math.ceil(number / multiple) * multiple


# ---- activations -----------------------------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """Bytes that one layer keeps for each token of a micro batch, by place."""

    entry: float
    """Its input alone: all that is kept of a layer that is computed again."""
    norms: float
    """The norms, and the inputs of the linears behind them."""
    attention: float
    """Fused QKV and, after rotary embedding, queries and keys; what attention gives."""
    mlp: float
    """Between the two linears of the MLP."""
    dropout: float

    @property
    def total(self) -> float:
        """All of them but `entry`, which the norms keep."""
        return self.norms + self.attention + self.mlp + self.dropout


def layer(spec: ModelSpec, setting: Setting, *, tp: int) -> Layer:
    """What one layer keeps on each of `tp` ranks."""
    e, h, outer = setting.itemsize, spec.hidden_size, tp if setting.sequence_parallel else 1
    branches = 1 if spec.shared_norm else 2
    apart = 1 if spec.parallel_attention else 2  # two branches beside each other read the same hidden states
    stays = apart * h * (FP32 if spec.norm == "rms" else e) + branches * _statistics(spec, e)
    normed = branches * h * (2 * e if spec.norm == "rms" else e)  # RMSNorm keeps what it multiplies its weight with, too
    gates = 5 if spec.activation == "swiglu" else 2
    return Layer(
        entry=e * h / outer,
        norms=(stays + normed) / outer,
        attention=_attention(spec, setting) / tp,
        mlp=gates * e * spec.ffn_hidden_size / tp,
        dropout=apart * h * setting.hidden_dropout / outer,  # one byte each on CUDA; wider on the CPU
    )


def _statistics(spec: ModelSpec, e: int) -> int:
    """A norm's own: one number in fp32, or mean and deviation."""
    return FP32 if spec.norm == "rms" else 2 * e


def _attention(spec: ModelSpec, setting: Setting) -> float:
    """Of all heads. The fused QKV stays because values are a view of it; rotary embedding makes new queries and keys."""
    e, width, kv = setting.itemsize, spec.num_attention_heads * spec.kv_channels, spec.num_query_groups * spec.kv_channels
    turned = width + kv if spec.position == "rope" else 0
    windowed = spec.sliding_window is not None and spec.sliding_window < setting.seq_length
    mask = setting.seq_length * e / setting.micro_batch_size if windowed else 0.0  # one for the micro batch
    return e * (width + 2 * kv + turned + width) + FP32 * spec.num_attention_heads + mask


def _activations(spec: ModelSpec, layout: Layout, setting: Setting, stage: int) -> tuple[float, float]:
    """Of all micro batches that are between their forward and their backward, at most; and what backward makes anew."""
    tokens = setting.seq_length * setting.micro_batch_size
    one = layer(spec, setting, tp=layout.tp)
    chunks = [len(run) for run in _layers(spec, layout, stage)]
    passes = _in_flight(layout, setting, stage)
    kept = sum(_kept(one, setting, n) for n in chunks) / len(chunks)
    again = max(_again(one, setting, n) for n in chunks)
    outer = layout.tp if setting.sequence_parallel else 1
    ends = (stage == 0) * (16 + spec.hidden_size * setting.hidden_dropout / outer)  # ids and positions
    if stage == layout.pp - 1:
        ends += _head(spec, layout, setting)
    return tokens * (passes * kept + ends * max(1, passes / len(chunks))), tokens * again


def _layers(spec: ModelSpec, layout: Layout, stage: int) -> list[range]:
    """Of each chunk of a stage."""
    runs = stage_layers(spec.num_layers, pp=layout.pp, vpp=layout.vpp, uneven=layout.uneven)
    return [runs[stage, chunk] for chunk in range(layout.vpp)]


def _in_flight(layout: Layout, setting: Setting, stage: int) -> int:
    """Passes through a chunk whose backward is still to come, at most: megatron-core's warmup, and the next one."""
    behind = layout.pp - stage - 1
    if layout.vpp == 1:
        return min(setting.micro_batches, behind + 1)
    return min(setting.micro_batches * layout.vpp, 2 * behind + (layout.vpp - 1) * layout.pp + 1)


def _kept(one: Layer, setting: Setting, layers: int) -> float:
    """What a chunk keeps for each token until its backward begins."""
    if setting.recompute == "full":
        if setting.by_block:
            again = min(setting.recompute_layers, layers)
            return again * one.entry + (layers - again) * one.total
        return math.ceil(layers / setting.recompute_layers) * one.entry
    return layers * (one.total - _dropped(one, setting))


def _dropped(one: Layer, setting: Setting) -> float:
    """What selective recompute does not keep of a layer. Attention's inputs and output stay: it is little."""
    return one.mlp if setting.recompute == "selective" and "mlp" in setting.recompute_modules else 0.0


def _again(one: Layer, setting: Setting, layers: int) -> float:
    """What backward makes anew at one time."""
    if setting.recompute == "full":
        return one.total * min(layers, 1 if setting.by_block else setting.recompute_layers)
    return _dropped(one, setting)


def _head(spec: ModelSpec, layout: Layout, setting: Setting) -> float:
    """The last norm, the head's input, and the logits of a rank's vocabulary, in whose place their gradient comes."""
    e, h, outer = setting.itemsize, spec.hidden_size, layout.tp if setting.sequence_parallel else 1
    norm = h * (FP32 + e if spec.norm == "rms" else e) + _statistics(spec, e)
    return (norm + e * h) / outer + e * layout.padded_vocab / layout.tp
