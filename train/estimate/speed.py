"""An estimate of a step's time, to rank layouts by: what a GPU computes, and what it waits for.

It knows arithmetic and volumes: operations, what is recomputed, idle time of the pipeline, bytes between ranks. It does
not know how fast kernels are at a size, what overlaps, nor how ranks lie in the network.
"""

from dataclasses import dataclass

from mconv.shard.layout import Layout
from mconv.spec import ModelSpec
from mconv.train.config import TrainConfig
from mconv.train.estimate import flops
from mconv.train.estimate.activations import FP32, Setting


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """Assumed rates of a cluster, H100-like."""

    tflops: float = 400.0
    """TFLOP/s of each GPU while it computes."""
    node: int = 8
    """GPUs of one machine."""
    inside: float = 300e9
    """Bytes a second that a GPU exchanges with others of its machine."""
    outside: float = 40e9
    """Bytes a second that a GPU exchanges with other machines."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepTime:
    """Seconds of one optimizer step on the busiest rank, by cause."""

    compute: float
    """Operations that the model needs, shared evenly."""
    recompute: float
    """Operations that are done again."""
    imbalance: float
    """Waiting for the stage that has most to do: the one with the output layer, or with more layers."""
    bubble: float
    """Waiting for the pipeline to fill and to drain."""
    tensor: float
    """Exchange among tensor-parallel ranks."""
    pipeline: float
    """Exchange between stages."""
    data: float
    """Exchange of gradients and weights among replicas, as far as nothing is computed meanwhile."""

    @property
    def seconds(self) -> float:
        """Return the sum of all."""
        return self.compute + self.recompute + self.imbalance + self.bubble + self.tensor + self.pipeline + self.data


def step(
    config: TrainConfig, spec: ModelSpec, layout: Layout, setting: Setting, *, trained: int, machine: Machine
) -> StepTime:
    """Return the time of a step of a model of which so many parameters are trained."""
    tokens, rate = setting.seq_length * setting.micro_batch_size, machine.tflops * 1e12 * layout.tp
    m, once = setting.micro_batches, flops.forward(spec, setting.seq_length)
    passes = flops.per_token(spec, setting.seq_length, setting.trains) / once.total  # forward and backward: 3, if whole
    layers = _layers(spec, layout)
    each = (once.total - once.head) / spec.num_layers
    work = [each * count + once.head * (stage == layout.pp - 1) for stage, count in enumerate(layers)]
    even, slowest = once.total / layout.pp, max(work)
    again = _again(config, once) / once.total
    seconds = tokens * even * passes / rate
    one = seconds * (slowest / even) * (1 + again / passes)
    between = _tensor(config, spec, layout, setting, max(layers), machine)
    return StepTime(
        compute=m * seconds,
        recompute=m * seconds * again / passes,
        imbalance=m * (one - seconds * (1 + again / passes)),
        bubble=(layout.pp - 1) / layout.vpp * (one + between),
        tensor=m * between,
        pipeline=m * _pipeline(spec, layout, setting, machine),
        data=_data(config, layout, setting, trained / (layout.tp * layout.pp), one / passes, machine),
    )


def _layers(spec: ModelSpec, layout: Layout) -> list[int]:
    """Return the number of layers of each stage."""
    runs = layout.stages(spec.num_layers)
    return [sum(len(runs[stage, chunk]) for chunk in range(layout.vpp)) for stage in range(layout.pp)]


def _again(config: TrainConfig, once: flops.Forward) -> float:
    """Return the operations for each token that the backward pass does again."""
    if config.recompute_granularity == "full":
        return once.total - once.head
    modules = config.recompute_modules or ["core_attn"]
    parts = {"mlp": once.mlp, "core_attn": once.scores}
    return sum(parts[module] for module in modules) if config.recompute_granularity == "selective" else 0.0


def _tensor(
    config: TrainConfig, spec: ModelSpec, layout: Layout, setting: Setting, layers: int, machine: Machine
) -> float:
    """Return the seconds of a micro batch's all-reduces: two forward and two backward in a layer, two more if again."""
    if layout.tp == 1:
        return 0.0
    times = 6 if config.recompute_granularity == "full" else 4
    size = setting.seq_length * setting.micro_batch_size * spec.hidden_size * setting.itemsize
    rate = machine.inside if layout.tp <= machine.node else machine.outside
    return layers * times * size * 2 * (layout.tp - 1) / layout.tp / rate


def _pipeline(spec: ModelSpec, layout: Layout, setting: Setting, machine: Machine) -> float:
    """Return the seconds in which a micro batch goes to the next stage and its gradient to the one before."""
    if layout.pp == 1:
        return 0.0
    outer = layout.tp if setting.sequence_parallel else 1
    size = setting.seq_length * setting.micro_batch_size * spec.hidden_size * setting.itemsize / outer
    near = layout.tp * setting.replicas * layout.pp <= machine.node  # all stages on one machine
    return 2 * layout.vpp * size / (machine.inside if near else machine.outside)


def _data(
    config: TrainConfig, layout: Layout, setting: Setting, trained: float, forward: float, machine: Machine
) -> float:
    """Return the seconds in which replicas exchange gradients, and weights where they share the optimizer's work.

    Overlapped, gradients go while the last micro batch's backward pass runs, and weights in the first one's `forward`.
    """
    if setting.replicas == 1:
        return 0.0
    part = (setting.replicas - 1) / setting.replicas
    rate = (machine.inside if layout.tp * setting.replicas <= machine.node else machine.outside) / part
    reduce = FP32 * trained * (1 if setting.distributed_optimizer else 2) / rate
    gather = setting.itemsize * trained / rate if setting.distributed_optimizer else 0.0
    hidden = 2 * forward * config.overlap_grad_reduce, forward * config.overlap_param_gather
    return max(0.0, reduce - hidden[0]) + max(0.0, gather - hidden[1])
