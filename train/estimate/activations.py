"""Bytes that the backward pass needs of the forward pass: what autograd keeps of a micro batch, module by module.

The modules are those that `model/engine.py` builds. What an operation needs only while it runs is on top. Nothing here
imports megatron-core.
"""

from dataclasses import dataclass
from functools import lru_cache

from mconv.convert.families import FAMILIES
from mconv.convert.peft.lora import Linear
from mconv.convert.spelling.table import Branch, Row
from mconv.shard.layout import Layout
from mconv.spec import ModelSpec
from mconv.train.model.trainable import ALL, Flow, Trainable, Way, flows

FP32 = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """Settings that memory depends on, apart from the model and its layout."""

    seq_length: int
    micro_batch_size: int
    micro_batches: int
    """Micro batches of one step on one replica."""
    replicas: int = 1
    itemsize: int = FP32
    """Bytes of a weight in forward and backward."""
    sequence_parallel: bool = False
    distributed_optimizer: bool = False
    moments: int = 2
    """fp32 numbers that the optimizer keeps for each parameter: two for Adam, one for sgd with momentum."""
    hidden_dropout: bool = False
    attention_dropout: bool = False
    own_masks: bool = False
    """True if each sample has its own mask, since the documents in it do not see each other."""
    cpu: bool = False
    """Kernels of a CPU, which keep more of what was dropped out."""
    trains: Trainable = ALL
    recompute: str = "none"
    """Granularity of recomputation: `none`, `selective` or `full`."""
    recompute_modules: tuple[str, ...] = ("core_attn",)
    recompute_layers: int = 1
    """Layers in a unit of `full` recomputation or, `by_block`, recomputed layers of each chunk."""
    by_block: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """Bytes that one layer keeps for each token of a micro batch, by place."""

    entry: float
    """Its input alone: all that is kept of a layer that is computed again."""
    norms: float
    """The norms, and the inputs of the linears behind them."""
    attention: float
    """Fused QKV and, after rotary embedding, queries and keys; what attention gives; and what its adapters keep."""
    scores: float
    """Attention scores, which a CPU keeps for dropout."""
    mlp: float
    """Tensors between the two linears of the MLP, and what adapters keep of the MLP."""
    dropout: float

    @property
    def total(self) -> float:
        """Return the sum of all but `entry`, which the norms keep."""
        return self.norms + self.attention + self.scores + self.mlp + self.dropout


@lru_cache(maxsize=1024)  # most layers of a model are alike
def layer(spec: ModelSpec, setting: Setting, at: Flow, *, tp: int) -> Layer:
    """Return what one layer keeps on each of `tp` ranks, where gradients flow as `at` says."""
    e, h, outer = setting.itemsize, spec.hidden_size, tp if setting.sequence_parallel else 1
    branches, ways = FAMILIES[spec.family].branches(spec), at.ways
    normed = [way.normed for way in ways]
    reads = [_read(spec, setting, at, branch.column) for branch in branches]
    kept = {branch.attends: _inside(spec, setting, at, branch, way, tp=tp)
            for branch, way in zip(branches, ways, strict=True)}  # fmt: skip
    attends = any(branch.attends and way.inner for branch, way in zip(branches, ways, strict=True))
    masks = at.leaves if spec.parallel_attention else sum(way.inner for way in ways[:-1]) + at.leaves
    return Layer(
        entry=e * h / outer,
        norms=(
            h * e * _count(normed, once=spec.parallel_attention)
            + _statistics(spec, e) * _count(normed, once=spec.shared_norm)
            + h * e * _count(reads, once=spec.shared_norm)
        ) / outer,
        attention=kept[True],
        scores=attends * _scores(spec, setting) / tp,
        mlp=kept[False],
        dropout=masks * h * setting.hidden_dropout * _mask(setting) / outer,
    )  # fmt: skip


def _count(kept: list[bool], *, once: bool) -> int:
    """Return how many of the branches' tensors are kept: one at most, where all branches have the same (`once`)."""
    return any(kept) if once else sum(kept)


def _inside(spec: ModelSpec, setting: Setting, at: Flow, branch: Branch, way: Way, *, tp: int) -> float:
    """Return what is kept between the two linears of a branch, and what its adapters keep."""
    adapters = _adapters(spec, setting, (branch.column.name, branch.row.name), tp=tp)
    if branch.attends:
        return way.inner * _attention(spec, setting) / tp + adapters
    gates = spec.sizes["p"]  # both halves, or what the activation reads
    read = _read(spec, setting, at, branch.row)
    return setting.itemsize * spec.ffn_hidden_size * (gates * way.inner + read) / tp + adapters


def _read(spec: ModelSpec, setting: Setting, at: Flow, row: Row) -> bool:
    """Return whether a linear's input is kept: for the gradient of its weight, or of adapters without dropout."""
    adapter = setting.trains.adapter
    plain = adapter is not None and not adapter.dropout
    return row.name in at.weights or (plain and bool(setting.trains.adapters(spec, row.name)))


def _adapters(spec: ModelSpec, setting: Setting, rows: tuple[str, ...], *, tp: int) -> float:
    """Return what adapters of some rows keep beside their input: what passes between their factors, dropped inputs."""
    found = [linear for row in rows for linear in setting.trains.adapters(spec, row)]
    return sum((_adapter(spec, setting, linear, tp=tp) for linear in found), 0.0)


def _adapter(spec: ModelSpec, setting: Setting, linear: Linear, *, tp: int) -> float:
    adapter, outer = setting.trains.adapter, tp if setting.sequence_parallel else 1
    assert adapter is not None
    narrow = adapter.width * setting.itemsize / (1 if linear.column else outer)
    inputs = linear.shape("A", rank=1, sizes=spec.sizes)[1] / (outer if linear.column else tp)
    return narrow + bool(adapter.dropout) * inputs * (setting.itemsize + _mask(setting))


def _mask(setting: Setting) -> int:
    """Return the bytes of one element of a dropout mask."""
    return setting.itemsize if setting.cpu else 1


def _statistics(spec: ModelSpec, e: int) -> int:
    """Return the bytes of a norm's statistics: one number in fp32, or mean and deviation."""
    return FP32 if spec.norm == "rms" else 2 * e


def _attention(spec: ModelSpec, setting: Setting) -> float:
    """Return the bytes of all heads. The fused QKV stays (values are a view of it); rotary makes new queries and keys."""
    e, width, kv = setting.itemsize, spec.num_attention_heads * spec.kv_channels, spec.num_query_groups * spec.kv_channels
    windowed = spec.sliding_window is not None and spec.sliding_window < setting.seq_length
    statistics = FP32 * spec.num_attention_heads + _head_norms(spec, e)
    if not (windowed or setting.own_masks):
        turned = width + kv if spec.position == "rope" else 0
        return float(e * (width + 2 * kv + turned + width) + statistics)
    # one mask for the micro batch, or for each sample, widened to numbers; keys and values of each head for itself
    mask = setting.seq_length * e / (1 if setting.own_masks else setting.micro_batch_size)
    turned = width if spec.position == "rope" else 0
    dropped = spec.num_query_groups < spec.num_attention_heads and turned and not spec.qk_norm
    fused = 0 if dropped else width + 2 * kv
    own = 2 * width if spec.num_query_groups < spec.num_attention_heads else kv * bool(turned)
    return e * (fused + turned + own + width) + statistics + mask


def _head_norms(spec: ModelSpec, e: int) -> int:
    """Return the bytes that norms of heads keep: statistics, and queries, copied if they share keys (keys are a view)."""
    copied = spec.num_query_groups < spec.num_attention_heads
    heads = spec.num_attention_heads + spec.num_query_groups
    kept = e * copied * spec.num_attention_heads * spec.kv_channels + _statistics(spec, e) * heads
    return kept * spec.qk_norm


def _scores(spec: ModelSpec, setting: Setting) -> float:
    """Return the bytes of softmax, mask and product of attention's dropout on a CPU; a GPU draws its mask again."""
    if not (setting.cpu and setting.attention_dropout):
        return 0.0
    return 3.0 * FP32 * spec.num_attention_heads * setting.seq_length


def activations(spec: ModelSpec, layout: Layout, setting: Setting, stage: int) -> tuple[float, float]:
    """Return the most bytes of micro batches between forward and backward, and the bytes that backward recomputes."""
    tokens = setting.seq_length * setting.micro_batch_size
    chunks = [_flows(spec, layout, setting, stage, chunk) for chunk in range(layout.vpp)]
    layers = [[layer(spec, setting, at, tp=layout.tp) for at in chunk] for chunk in chunks]
    passes = _in_flight(layout, setting, stage)
    kept = sum(_kept(chunk, setting) for chunk in layers) / len(chunks)
    again = max(_again(chunk, setting) for chunk in layers)
    ends = _ends(spec, layout, setting, stage, asks=chunks[-1][-1].leaves if chunks[-1] else True)
    return tokens * (passes * kept + ends * max(1, passes / len(chunks))), tokens * again


def _flows(spec: ModelSpec, layout: Layout, setting: Setting, stage: int, chunk: int) -> list[Flow]:
    """Return the flow of each layer of a chunk. What comes from another stage asks for a gradient, needed or not.

    So does what an embedding gives to adapters, and to layers that are computed again.
    """
    runs = layout.stages(spec.num_layers)
    first = stage == chunk == 0 and setting.recompute == "none" and setting.trains.adapter is None
    return flows(spec, setting.trains, runs[stage, chunk], enters=not first or setting.trains.embeds(spec))


def _in_flight(layout: Layout, setting: Setting, stage: int) -> int:
    """Return the most passes through a chunk that wait for their backward: megatron-core's warmup, and the next one."""
    behind = layout.pp - stage - 1
    if layout.vpp == 1:
        return min(setting.micro_batches, behind + 1)
    return min(setting.micro_batches * layout.vpp, 2 * behind + (layout.vpp - 1) * layout.pp + 1)


def _kept(layers: list[Layer], setting: Setting) -> float:
    """Return the bytes that a chunk keeps for each token until its backward begins."""
    if setting.recompute == "full":
        if setting.by_block:
            again, whole = layers[: setting.recompute_layers], layers[setting.recompute_layers :]
            return sum((one.entry for one in again), 0.0) + sum(one.total for one in whole)
        return sum((one.entry for one in layers[:: setting.recompute_layers]), 0.0)
    return sum((one.total - _dropped(one, setting) for one in layers), 0.0)


def _dropped(one: Layer, setting: Setting) -> float:
    """Return the bytes of a layer that selective recompute does not keep. Attention's inputs and output stay."""
    if setting.recompute != "selective":
        return 0.0
    parts = {"mlp": one.mlp, "core_attn": one.scores}
    return sum((parts[module] for module in setting.recompute_modules), 0.0)


def _again(layers: list[Layer], setting: Setting) -> float:
    """Return the most bytes that backward recomputes at one time."""
    if setting.recompute == "full":
        size = 1 if setting.by_block else setting.recompute_layers
        units = (layers[start : start + size] for start in range(0, len(layers), size))
        return max((sum(one.total for one in unit) for unit in units), default=0.0)
    return max((_dropped(one, setting) for one in layers), default=0.0)


def _ends(spec: ModelSpec, layout: Layout, setting: Setting, stage: int, *, asks: bool) -> float:
    """Return the bytes of the embedding, the last norm, the head's input and the logits (their gradient replaces them).

    `asks`: whether what the last layer gives asks for a gradient.
    """
    e, h, outer = setting.itemsize, spec.hidden_size, layout.tp if setting.sequence_parallel else 1
    kept, trains = 0.0, setting.trains
    if stage == 0 and trains.embeds(spec):
        kept += 16 + h * setting.hidden_dropout * _mask(setting) / outer  # ids and positions
    if stage == layout.pp - 1:
        norm, head = asks or trains.final_norm(spec), trains.scores(spec)
        kept += (norm * (h * e + _statistics(spec, e)) + head * e * h) / outer
        kept += (norm or head) * e * layout.padded_vocab / layout.tp
    return kept
