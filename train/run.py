"""A run at its start: ranks, model, optimizer and schedule, new or resumed, each inherited value said."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from mconv.convert.checkpoint import Checkpoint
from mconv.errors import ConfigError
from mconv.spec import ModelSpec
from mconv.train import adapt, architecture, backend, checkpoint, layouts, recompute, saving, takeover, weights
from mconv.train import log as logs
from mconv.train.begin import Beginning, where
from mconv.train.config import TrainConfig
from mconv.train.engine import build_chunks, check_known, init, unwrap
from mconv.train.flops import per_token
from mconv.train.freeze import count, freeze
from mconv.train.length import batch_size, length
from mconv.train.loss import TrueVocabLoss
from mconv.train.normalise import Normalise
from mconv.train.optimizer import dtype_of, make_optimizer
from mconv.train.parallel import Parallel, parallel_of
from mconv.train.precision import scale_losses
from mconv.train.replicas import gathered, replicated
from mconv.train.saving import Keep, Saver, Then, nothing
from mconv.train.schedule import scheduler as make_scheduler


@dataclass(slots=True, kw_only=True)
class Run:
    """What a run carries from step to step."""

    config: TrainConfig
    parallel: Parallel
    spec: ModelSpec
    seq_length: int
    chunks: list[Any]
    """This rank's parts of the model, each in megatron-core's data-parallel wrapper: one, or one a virtual stage."""
    optimizer: Any = None
    """None, as the scheduler, in a run that only evaluates."""
    scheduler: Any = None
    iterations: int
    """Steps of the whole run."""
    iteration: int
    """Steps taken or skipped."""
    consumed: int = 0
    """Samples seen."""
    origin: Checkpoint
    """What the run started or went on from."""
    normalise: Normalise
    """What divides the gradients of a step by its tokens' weights."""
    saver: Saver | None = None
    """Writes the checkpoints, where there is a folder for them."""
    memory: dict[str, Any] = field(default_factory=dict)
    """What else the next step depends on; it is saved, and is there again after a resume."""
    say: logs.Say
    """Takes lines for people: on rank 0."""

    @property
    def saved(self) -> int | None:
        """The last iteration that is on disk."""
        return self.saver.saved if self.saver else None

    @property
    def inherited(self) -> dict[str, tuple[Any, str]]:
        """Values that the configuration does not say, each with where it comes from."""
        world, padded = torch.distributed.get_world_size(), unwrap(self.chunks[0]).vocab_size
        found = {"padded_vocab_size": (padded, f"{self.spec.vocab_size} padded for tp {self.parallel.tp}"),
                 "data_parallel_size": (self.parallel.data_parallel(world), f"{world} ranks"),
                 "iteration": (self.iteration, self.origin.name)}  # fmt: skip
        if self.config.seq_length is None:
            found["seq_length"] = (self.seq_length, "the model's max_position_embeddings")
        return found


def start(config: TrainConfig, *, say: logs.Say) -> Run:
    """Everything that the first step needs. Raises ConfigError or LayoutError on what cannot work."""
    parallel = parallel_of(config)
    if not config.eval_only:
        _check_folders(config)
    init(parallel, seed=config.seed)
    start_from = where(config)
    source = start_from.own
    based = adapt.wanted(config)  # then checkpoints hold no weights of the model: these are always those of `load`
    own = source is not None and not based
    if own:
        opened = weights.open_weights(str(source), vocab_size=config.vocab_size)
    else:
        opened = architecture.origin(config, iteration=start_from.iteration)
    _check_same_run(config, opened, resumed=source is not None)
    spec, seq_length = opened.spec, config.seq_length or opened.spec.max_position_embeddings
    _check(config, spec, seq_length)
    taken_over = (config.resume and not source) or _reshared(config, opened, own=own)
    begun = takeover.opened(opened) if taken_over and not config.eval_only else None
    padded = weights.padded_size(opened, parallel, multiple=config.make_vocab_size_divisible_by)
    layouts.check(config, parallel, spec, padded_vocab_size=padded, seq_length=seq_length)
    models = build_chunks(
        spec, padded_vocab_size=padded, parallel=parallel, dtype=dtype_of(config),
        calculate_per_token_loss=True, **layouts.schedule(parallel), **recompute.options(config),
        variable_seq_lengths=config.variable_seq_lengths,
        moe_token_dispatcher_type="alltoall",  # the default refuses variable lengths, experts or not
        hidden_dropout=config.hidden_dropout, attention_dropout=config.attention_dropout,
        core_attention=backend.core_attention(config, dtype=dtype_of(config)),
    )  # fmt: skip
    for number, model in enumerate(models):
        if config.padded_vocab_in_loss:
            unwrap(model).compute_language_model_loss = TrueVocabLoss(padded)
        if based or not (source or begun):
            weights.fill(model, opened, parallel, padded_vocab_size=padded, chunk=number)
    if config.freeze:
        freeze(models, config.freeze)
    if based:
        say(adapt.adapt(models, config, opened, resumed=checkpoint.lora_of(source) if source else None))
    normalise = Normalise()
    chunks = models if config.eval_only else replicated(models, config, finalize=normalise)
    optimizer = None if config.eval_only else make_optimizer(chunks, config)
    at = checkpoint.Loaded()
    if source and not begun:
        at = checkpoint.load(source, chunks=chunks, optimizer=optimizer)
    elif begun:
        at = takeover.take_over(opened, begun, chunks=chunks, optimizer=optimizer, parallel=parallel)
    run = Run(
        config=config, parallel=parallel, spec=spec, seq_length=seq_length, chunks=chunks, optimizer=optimizer,
        scheduler=make_scheduler(optimizer, config, scheduled=at.scheduled) if optimizer else None,
        iterations=length(config).iterations, iteration=at.iteration, consumed=at.consumed, memory=at.memory,
        saver=None if config.eval_only else _saver(config, start_from), origin=opened, normalise=normalise, say=say,
    )  # fmt: skip
    if optimizer and config.fp16:
        tokens = seq_length / parallel.data_parallel(torch.distributed.get_world_size())
        scale_losses(chunks, optimizer, tokens=lambda: batch_size(config, run.consumed) * tokens)
    if start_from.back and not config.eval_only and torch.distributed.get_rank() == 0:
        saving.point(Path(str(config.save)), run.iteration)
    _tell(run, padded, say)
    return run


def _reshared(config: TrainConfig, opened: Checkpoint, *, own: bool) -> bool:
    """Whether the run's own optimizer is to be shared among replicas and was not, or was and is not to be."""
    return own and checkpoint.distributed(opened) not in (None, config.distributed_optimizer)


def _saver(config: TrainConfig, begun: Beginning) -> Saver | None:
    if config.save is None:
        return None
    keep = Keep(last=config.keep_last, every=config.keep_every)
    return Saver(
        root=Path(config.save), content=checkpoint.CONTENT, background=config.async_save, keep=keep, saved=begun.saved
    )


def save(run: Run, *, then: Then = nothing) -> None:
    """Write a checkpoint of the run as it stands, or begin to; `then` is called on all ranks when it is whole."""
    assert run.saver is not None
    spec, origin = run.spec, run.origin
    gathered(run.chunks)
    flops = per_token(spec, run.seq_length) * run.seq_length * run.consumed
    state = checkpoint.state(
        iteration=run.iteration, consumed=run.consumed, chunks=run.chunks, optimizer=run.optimizer,
        scheduler=run.scheduler, spec=spec, parallel=run.parallel, memory=run.memory,
        settings=checkpoint.settings_of(run.config), flops=flops,
    )  # fmt: skip
    args = state["args"]
    run.saver.save(
        run.iteration, state, finish=lambda folder: checkpoint.finish(folder, spec, args, origin=origin), then=then
    )


def _check_folders(config: TrainConfig) -> None:
    """Folders that cannot be made are refused before the first step, not after the last."""
    for name in ("save", "data_cache", "tensorboard_dir", "wandb_save_dir", "trigger_dir"):
        if wanted := getattr(config, name):
            try:
                Path(wanted).mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise ConfigError(f"{name} {wanted} cannot be made a folder: {error.strerror}") from error


def _check_same_run(config: TrainConfig, opened: Checkpoint, *, resumed: bool) -> None:
    """A run that is gone on with must be of the model that `load` names, where that is still there."""
    if not resumed or (config.load and not _is_elsewhere(Path(config.load), Path(str(config.save)))):
        return
    asked = architecture.origin(config)
    if asked.spec != opened.spec:
        named = config.load or config.preset or config.model
        raise ConfigError(f"{config.save} holds a run of another model than {named}; give another --save")


def _is_elsewhere(load: Path, save: Path) -> bool:
    """Whether what a run began with is still there, and is not its own folder."""
    return load.is_dir() and load.resolve() != save.resolve()


def _check(config: TrainConfig, spec: ModelSpec, seq_length: int) -> None:
    """Refuse a model that cannot run, and samples that it cannot see whole, before anything is built."""
    check_known(spec, what=str(config.load or config.preset or config.model))
    if seq_length > spec.max_position_embeddings:
        raise ConfigError(f"seq_length {seq_length} is more than the model's {spec.max_position_embeddings} positions")


def _tell(run: Run, padded: int, say: logs.Say) -> None:
    """Say where the run stands and what it inherited."""
    world = torch.distributed.get_world_size()
    begins = "evaluating" if run.config.eval_only else "resuming from" if run.iteration else "starting from"
    say(
        f"{begins} {run.origin.name}: "
        f"{run.spec.family}, {run.spec.num_layers} layers, "
        f"hidden {run.spec.hidden_size}, vocabulary {run.spec.vocab_size} padded to {padded}"
    )
    inherited = "" if run.config.seq_length else " (the model's max_position_embeddings)"
    say(
        f"{world} ranks: {layouts.described(run.parallel, run.spec, world=world)}; "
        f"seq_length {run.seq_length}{inherited}; iteration {run.iteration} of {run.iterations}"
    )
    if run.config.freeze or adapt.wanted(run.config):
        trained, whole = count([unwrap(chunk) for chunk in run.chunks])
        say(f"training {trained} of {whole} parameters ({100 * trained / whole:.4g} %)")
