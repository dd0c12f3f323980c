"""What a configuration asks for: parameters and memory of each rank, steps, data, operations, days. It starts nothing."""

from collections.abc import Iterator
from dataclasses import dataclass

from mconv.convert.checkpoint.model import SourceModel, target_layout
from mconv.errors import ConfigError, refuse
from mconv.shard.layout import Layout, padded_vocab
from mconv.train.config import TrainConfig
from mconv.train.config.length import run_length, unshared
from mconv.train.config.monitoring import beyond
from mconv.train.config.parallelism import uneven_of
from mconv.train.estimate import flops, memory, storage, units
from mconv.train.model import architecture
from mconv.train.model.adapter import asked, wanted
from mconv.train.model.precision import ChosenPrecision, dtype_of, resolved
from mconv.train.model.trainable import Trainable, check


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleCounts:
    """Samples that a run draws from its data, as Megatron counts them."""

    train: int
    validation: int
    test: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """The time of a run at a throughput."""

    tokens_per_second: float
    """Tokens per second over all ranks."""
    tflops: float
    """TFLOP/s of each rank."""
    days: float | None
    """Days of the whole run; None where it has no length."""

    @property
    def seconds(self) -> float | None:
        """Return the time of the whole run; None where it has no length."""
        return None if self.days is None else self.days * units.DAY


@dataclass(frozen=True, slots=True, kw_only=True)
class RunPlan:
    """A run before it is begun."""

    config: TrainConfig
    origin: SourceModel
    layout: Layout
    world: int
    seq_length: int
    precision: ChosenPrecision
    inherited: bool
    """True if the configuration gives no `seq_length`: it is the model's max_position_embeddings then."""
    micro_batches: int
    ranks: list[memory.Rank]
    iterations: int | None
    """Steps of the run; None if its length is not known."""
    samples: SampleCounts | None
    flops_per_token: float
    flops_per_iteration: float
    pace: Pace | None
    checkpoint: int
    """Bytes of one checkpoint with its optimizer state."""
    export: int
    """Bytes of one export to Hugging Face, in the dtype of the run."""

    @property
    def replicas(self) -> int:
        """Return the number of data-parallel replicas."""
        return self.world // (self.layout.tp * self.layout.pp)

    @property
    def flops(self) -> float | None:
        """Return the operations of the whole run."""
        return None if self.tokens is None else self.flops_per_token * self.tokens

    @property
    def tokens(self) -> int | None:
        """Return the tokens of the whole run."""
        return None if self.samples is None else self.samples.train * self.seq_length


def opened(config: TrainConfig) -> tuple[TrainConfig, SourceModel, ChosenPrecision]:
    """Return a configuration with its precision filled in, its model, and why that precision. Raises ConfigError."""
    origin = architecture.origin(config)
    config, precision = resolved(config, origin)
    return config, origin, precision


def plan(
    config: TrainConfig,
    *,
    world: int | None = None,
    tokens_per_second: float | None = None,
    tflops: float | None = None,
    endless: bool = False,
    cpu: bool = False,
) -> RunPlan:
    """Return all that follows from a configuration on `world` ranks (tp x pp, or `nproc_per_node`, if not given).

    `tokens_per_second`: over all ranks; or `tflops`: of each rank. `endless`: nobody knows how long the run is,
    whatever the configuration says. `cpu`: for ranks without a GPU. Raises ConfigError or LayoutError, as the run would.
    """
    config, origin, precision = opened(config)
    trains = trains_of(config, origin)
    layout, world = layout_of(config, origin), world or config.nproc_per_node or config.tp * config.pp
    length = config.seq_length or origin.spec.max_position_embeddings
    refuse(list(problems(config, origin, length, world)), doing="planning the run", kind=ConfigError)
    replicas = world // (layout.tp * layout.pp)
    micro_batches = config.global_batch_size // (config.micro_batch_size * replicas)
    setting = setting_of(config, trains, seq_length=length, micro_batches=micro_batches, replicas=replicas, cpu=cpu)
    steps = None if endless else run_length(config).iterations or None
    per_token = flops.per_token(origin.spec, length, trains)
    samples = samples_of(config, steps) if steps else None
    return RunPlan(
        config=config, origin=origin, layout=layout, world=world, seq_length=length, inherited=config.seq_length is None,
        precision=precision, micro_batches=micro_batches, ranks=memory.ranks(origin.spec, layout, setting),
        iterations=steps, samples=samples, flops_per_token=per_token,
        flops_per_iteration=per_token * length * config.global_batch_size,
        pace=_pace(per_token, world, None if samples is None else samples.train * length, tokens_per_second, tflops),
        checkpoint=_checkpoint(config, origin, layout, setting), export=setting.itemsize * origin.parameters,
    )  # fmt: skip


def _checkpoint(config: TrainConfig, opened: SourceModel, layout: Layout, setting: memory.Setting) -> int:
    """Return the bytes of one checkpoint: of the model, its vocabulary padded, or of its adapters alone."""
    whole = memory.count(opened.spec, layout)
    trained = memory.trained(opened.spec, setting.trains, padded_vocab=layout.padded_vocab)  # their state is saved, too
    weights = setting.itemsize * (trained if setting.trains.adapter else whole)
    return storage.checkpoint_bytes(config, trained=trained, weights=weights)


def trains_of(config: TrainConfig, opened: SourceModel) -> Trainable:
    """Return what a configuration trains. Raises ConfigError, as the run would, on names that the model has not."""
    if wanted(config):
        return Trainable(adapter=asked(config, opened)[0])
    trains = Trainable(freeze=tuple(config.freeze or ()))
    check(trains, opened.spec)
    return trains


def problems(config: TrainConfig, opened: SourceModel, length: int, world: int) -> Iterator[str]:
    """Yield what the run itself would refuse."""
    shared, most = config.tp * config.pp, opened.spec.max_position_embeddings
    replicas = world // shared
    if world % shared:
        yield f"tp {config.tp} x pp {config.pp} does not divide {world} ranks"
    else:
        yield from unshared(config, replicas=replicas)
    yield from beyond(config, world=world)
    if length > most:
        yield f"seq_length {length} is more than the model's {most} positions"


def layout_of(config: TrainConfig, opened: SourceModel) -> Layout:
    """Return the run's layout. Raises LayoutError with every size that does not fit the model."""
    wanted = target_layout(
        opened.spec, opened.family, tp=config.tp, pp=config.pp, vpp=config.vpp, uneven=uneven_of(config),
        vocab_multiple=config.make_vocab_size_divisible_by,
    )  # fmt: skip
    rows = opened.layout.padded_vocab if opened.layout else padded_vocab(
        opened.spec.vocab_size, tp=config.tp, multiple=config.make_vocab_size_divisible_by
    )  # fmt: skip
    return Layout(tp=wanted.tp, pp=wanted.pp, vpp=wanted.vpp, uneven=wanted.uneven, padded_vocab=rows)


def setting_of(
    config: TrainConfig, trains: Trainable, *, seq_length: int, micro_batches: int, replicas: int, cpu: bool
) -> memory.Setting:
    """Return the settings of a configuration that memory depends on."""
    return memory.Setting(
        seq_length=seq_length,
        micro_batch_size=config.micro_batch_size,
        micro_batches=micro_batches,
        replicas=replicas,
        itemsize=dtype_of(config).itemsize,
        sequence_parallel=config.sequence_parallel,
        distributed_optimizer=config.distributed_optimizer,
        moments=2 if config.optimizer == "adam" else int(config.sgd_momentum > 0),
        hidden_dropout=config.hidden_dropout > 0,
        attention_dropout=config.attention_dropout > 0,
        own_masks=config.reset_attention_mask or config.packing,
        cpu=cpu,
        trains=trains,
        recompute=config.recompute_granularity,
        recompute_modules=tuple(config.recompute_modules or ["core_attn"]),
        recompute_layers=config.recompute_num_layers,
        by_block=config.recompute_method == "block",
    )


def samples_of(config: TrainConfig, steps: int) -> SampleCounts:
    """Return the samples of each split: one evaluation for each interval and one more, and one of the test split."""
    batch = config.eval_iters * config.global_batch_size if config.eval_interval else 0
    times = steps // config.eval_interval + 1 if config.eval_interval else 0
    return SampleCounts(train=run_length(config).samples, validation=times * batch, test=batch)


def _pace(
    per_token: float, world: int, tokens: int | None, tokens_per_second: float | None, tflops: float | None
) -> Pace | None:
    if tokens_per_second is not None and tflops is not None:
        raise ConfigError("tokens_per_second and tflops say the same thing twice; give one of them")
    if tflops is not None:
        tokens_per_second = tflops * 1e12 * world / per_token
    if tokens_per_second is None:
        return None
    if not 0 < tokens_per_second < float("inf"):
        raise ConfigError("a throughput must be positive")
    return Pace(
        tokens_per_second=tokens_per_second,
        tflops=tokens_per_second * per_token / world / 1e12,
        days=None if tokens is None else tokens / tokens_per_second / units.DAY,
    )
