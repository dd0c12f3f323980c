"""Start a run, new or resumed: ranks, model, optimizer and schedule; each inherited value is printed."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from mconv.convert.checkpoint.model import Checkpoint, SourceModel
from mconv.convert.checkpoint.optimizer import OptimizerState, with_padding
from mconv.convert.folders import sidecar
from mconv.convert.formats.dtype import in_torch
from mconv.convert.sources.read import check_copies
from mconv.convert.sources.source import Source
from mconv.errors import ConfigError
from mconv.spec import ModelSpec
from mconv.train.checkpoints import (
    adapt,
    checkpoint,
    disk,
    foreign_resume,
    inherit,
    integrity,
    metadata,
    resume_choice,
    settings,
)
from mconv.train.checkpoints.begin import Beginning, confirm, where
from mconv.train.checkpoints.folders import check_folders, is_elsewhere
from mconv.train.checkpoints.saving import Saver
from mconv.train.config import TrainConfig
from mconv.train.config.length import batch_size, run_length
from mconv.train.estimate import storage
from mconv.train.logs import log as logs
from mconv.train.loop import layouts
from mconv.train.loop.run import Run
from mconv.train.megatron import collectives
from mconv.train.megatron.parallel import Parallel, parallel_of
from mconv.train.model import adapter, architecture, backend, recompute, trusted, weights
from mconv.train.model.checks import check_known
from mconv.train.model.engine import build_chunks, init, unwrap
from mconv.train.model.freeze import count, freeze
from mconv.train.model.loss import TrueVocabLoss
from mconv.train.model.precision import dtype_of, precision_of, resolved
from mconv.train.optim.optimizer import make_optimizer
from mconv.train.optim.per_token_loss import PerTokenLoss
from mconv.train.optim.precision import scale_losses
from mconv.train.optim.replicas import replicated
from mconv.train.optim.schedule import scheduler as make_scheduler


def start(config: TrainConfig, *, say: logs.Say) -> Run:
    """Return a run at its first step. Raises ConfigError or LayoutError on what cannot work."""
    parallel = parallel_of(config)
    init(parallel, seed=config.seed)
    source = _source(config)
    if not config.eval_only:
        check_folders(config)
    config, precision = resolved(config, source.opened)
    spec = source.opened.spec
    seq_length = config.seq_length or spec.max_position_embeddings
    _check(config, spec, seq_length)
    padded = weights.padded_size(source.opened, parallel, multiple=config.make_vocab_size_divisible_by)
    layouts.check(config, parallel, spec, padded_vocab_size=padded, seq_length=seq_length)
    fills = source.adapted or not (source.own or source.others)
    say("building the model" + (f" and reading its weights from {source.opened.name}" if fills else ""))
    models = _models(config, parallel, source, padded)
    if source.adapted:
        resumed = checkpoint.lora_of(source.own) if source.own else None
        if config.save:
            say(f"computing the digest of the base's weights in {source.opened.name}")
        say(adapt.adapt(models, config, source.opened, resumed=resumed))
    size = 0 if config.eval_only else _room(config, models, source, say)
    per_token_loss = PerTokenLoss()
    chunks = models if config.eval_only else replicated(models, config, finalize=per_token_loss)
    optimizer = None if config.eval_only else make_optimizer(chunks, config)
    if state := source.own or (source.others and source.opened.name):
        say(f"checking and reading {state}" if source.own else f"reading the optimizer state of {state}")
    at = _loaded(source, parallel, chunks=chunks, optimizer=optimizer)
    run = Run(
        config=config, parallel=parallel, spec=spec, seq_length=seq_length, chunks=chunks, optimizer=optimizer,
        scheduler=make_scheduler(optimizer, config, scheduled=at.scheduled) if optimizer else None,
        iterations=run_length(config).iterations, iteration=at.iteration, consumed=at.consumed, memory=at.memory,
        saver=None if config.eval_only else _saver(config, source.at, say, size), origin=source.opened,
        per_token_loss=per_token_loss, begun=_name(source), say=say,
    )  # fmt: skip
    if optimizer and config.fp16:
        tokens = seq_length / parallel.data_parallel(torch.distributed.get_world_size())
        scale_losses(chunks, optimizer, tokens=lambda: batch_size(config, run.consumed) * tokens)
    _tell(run, source, padded, say)
    for line in filter(None, (source.left_out, precision.line)):
        say(line)
    then = run.memory.get("settings") or (inherit.known(source.opened) if source.others else None)
    for line in [] if config.eval_only else settings.changes(config, then, iteration=run.iteration):
        say(line)
    run.memory["settings"] = settings.deciding(config)
    return run


@dataclass(frozen=True, slots=True, kw_only=True)
class _Origin:
    """The checkpoints that a run is made of."""

    at: Beginning
    opened: SourceModel
    """The checkpoint with the model's weights: the run's own, or the one that it begins with."""
    adapted: bool
    """True if adapters alone are trained: the run's checkpoints hold these, and `opened` is always `load`."""
    left_out: str | None
    """A line on optimizer state in `load` that a new run does not use."""
    others: OptimizerState | None
    """State of a run that megatron-core's loader cannot read back here: another program's, or shared otherwise."""

    @property
    def own(self) -> Path | None:
        """Return the run's own checkpoint, if it has one."""
        return self.at.own


def _name(source: _Origin) -> str:
    """Return the checkpoint that the run starts or resumes from: a LoRA run resumes from its adapter's, not the base."""
    return str(source.own) if source.adapted and source.own else source.opened.name


def _source(config: TrainConfig) -> _Origin:
    """Open what the run starts or goes on from. Raises ConfigError where that is another model's."""
    at, adapted = collectives.on_rank_0(lambda: where(config)), adapter.wanted(config)
    own = at.own is not None and not adapted
    if config.finetune and at.own and _lies_in(Path(str(config.load)), Path(str(config.save))):
        raise ConfigError(f"finetune begins a new run, but save {config.save} holds the run in load; give another --save")
    if own:
        opened = weights.open_weights(str(at.own), vocab_size=config.vocab_size, ignore=architecture.passes(config))
    else:
        opened = architecture.origin(config, iteration=at.iteration)
        collectives.on_rank_0(lambda: check_copies(opened.source))  # each rank would begin with a copy of its own choice
    _check_same_run(config, opened, resumed=at.own is not None)
    left_out = None if at.own or config.load is None else resume_choice.left_out(opened, vars(config))
    taken_over = (config.resume and not at.own) or _changed(config, opened, own=own)
    others = foreign_resume.open_state(opened) if taken_over and not config.eval_only else None
    if others and not at.own:
        foreign_resume.check_unfinished(opened, run_length(config).iterations)
    return _Origin(at=at, opened=opened, adapted=adapted, left_out=left_out, others=others)


def _models(config: TrainConfig, parallel: Parallel, source: _Origin, padded: int) -> list[Any]:
    """Build this rank's parts of the model, with the weights to begin with; empty if its own state follows."""
    models = build_chunks(
        source.opened.spec, padded_vocab_size=padded, parallel=parallel, dtype=in_torch(dtype_of(config)),
        calculate_per_token_loss=True, **layouts.schedule(parallel), **recompute.options(config),
        variable_seq_lengths=config.variable_seq_lengths,
        moe_token_dispatcher_type="alltoall",  # the default refuses variable lengths, experts or not
        hidden_dropout=config.hidden_dropout, attention_dropout=config.attention_dropout,
        core_attention=backend.core_attention(config, dtype=in_torch(dtype_of(config))),
    )  # fmt: skip
    for number, model in enumerate(models):
        if config.padded_vocab_in_loss:
            unwrap(model).compute_language_model_loss = TrueVocabLoss(padded)
        if source.adapted or not (source.own or source.others):
            weights.fill(model, _filling(config, source.opened), parallel, padded_vocab_size=padded, chunk=number)
    if config.freeze:
        freeze(models, config.freeze)
    return models


def _filling(config: TrainConfig, opened: SourceModel) -> Source:
    """Return what fills the model: with the rows of vocabulary padding, where the loss counts them and there are some."""
    if config.padded_vocab_in_loss and isinstance(opened, Checkpoint) and opened.layout is not None:
        return with_padding(opened)
    return opened.source


def _loaded(source: _Origin, parallel: Parallel, *, chunks: list[Any], optimizer: Any) -> checkpoint.Loaded:
    """Fill model and optimizer with what the run goes on from, if it does; returns where that stands."""
    if source.own:
        integrity.check(source.own)
    if source.others:
        return foreign_resume.load(source.opened, source.others, chunks=chunks, optimizer=optimizer, parallel=parallel)
    if source.own:
        return checkpoint.load(source.own, chunks=chunks, optimizer=optimizer)
    return checkpoint.Loaded()


def _changed(config: TrainConfig, opened: SourceModel, *, own: bool) -> bool:
    """Return whether megatron-core cannot load the run's own state: kept otherwise, or not to be given to its loader."""
    if not own:
        return False
    shared = metadata.distributed(opened) not in (None, config.distributed_optimizer)
    other = metadata.precision(opened.common) not in (None, precision_of(config, opened).name)
    return shared or other or not collectives.on_rank_0(lambda: trusted.reads_all(opened.path))


def _room(config: TrainConfig, models: list[Any], source: _Origin, say: logs.Say) -> int:
    """Return the bytes of one checkpoint, and say what the disk will not hold. Raises ConfigError if not even one."""
    trained, whole = count([unwrap(model) for model in models])
    if config.save is None:
        say("warning: nothing will be saved, since there is no --save")
        return 0
    itemsize = dtype_of(config).itemsize
    weights = (trained if source.adapted else whole) * itemsize
    size = storage.checkpoint_bytes(config, trained=trained, weights=weights)
    size += sum(file.stat().st_size for file in source.opened.side_files.values())
    at = (source.opened.iteration if source.others else source.at.saved) or 0
    for line in collectives.on_rank_0(
        lambda: list(disk.check(config, size, weights=weights, iteration=at, iterations=run_length(config).iterations))
    ):
        say(line)
    return size


def _saver(config: TrainConfig, begun: Beginning, say: logs.Say, size: int) -> Saver | None:
    if config.save is None:
        return None
    return Saver(
        root=Path(config.save), content=checkpoint.CONTENT, say=say, background=config.async_save, saved=begun.saved,
        confirm=lambda: confirm(config, begun), keep=storage.Keep(config.keep_last, config.keep_every),
        size=size, skips=config.on_full_disk == "continue",
    )  # fmt: skip


def _check_same_run(config: TrainConfig, opened: SourceModel, *, resumed: bool) -> None:
    """Raise ConfigError unless the run that is resumed is of the model that `load` names, where that is still there."""
    if not resumed or (config.load and not is_elsewhere(Path(config.load), Path(str(config.save)))):
        return
    asked = architecture.origin(config)
    if asked.spec != opened.spec:
        named = config.load or config.preset or config.model
        raise ConfigError(f"{config.save} holds a run of another model than {named}; give another --save")


def _lies_in(load: Path, save: Path) -> bool:
    """Return whether a run would begin with weights of the folder that it saves in."""
    return load.resolve().is_relative_to(save.resolve())


def _check(config: TrainConfig, spec: ModelSpec, seq_length: int) -> None:
    """Refuse a model that cannot run, and samples that it cannot see whole, before anything is built."""
    check_known(spec, what=str(config.load or config.preset or config.model))
    if seq_length > spec.max_position_embeddings:
        raise ConfigError(f"seq_length {seq_length} is more than the model's {spec.max_position_embeddings} positions")


def _tell(run: Run, source: _Origin, padded: int, say: logs.Say) -> None:
    """Say where the run stands and what it inherited."""
    world = torch.distributed.get_world_size()
    begins = "evaluating" if run.config.eval_only else "resuming from" if run.iteration else "starting from"
    name = f"{run.begun} (adapter) on base {run.origin.name}" if source.adapted and source.own else run.begun
    say(
        f"{begins} {name}: "
        f"{run.spec.family}, {run.spec.num_layers} layers, "
        f"hidden {run.spec.hidden_size}, vocabulary {run.spec.vocab_size} padded to {padded}"
    )
    for note in run.origin.notes:
        say(f"note: {note}")
    if run.saver and (behind := sidecar.note(run.origin.sidecars.left_out)):
        say(behind)
    inherited = "" if run.config.seq_length else " (the model's max_position_embeddings)"
    where = "" if run.config.eval_only else f"; iteration {run.iteration} of {run.iterations}"
    say(
        f"{world} rank{'s' * (world > 1)}: {layouts.described(run.parallel, run.spec, world=world)}; "
        f"seq_length {run.seq_length}{inherited}{where}"
    )
    if run.config.padded_vocab_in_loss and padded != run.spec.vocab_size and not run.iteration:
        rows = "are those of its checkpoint" if run.origin.layout is not None else "begin as zeros: it has none"
        say(f"{padded - run.spec.vocab_size} rows of vocabulary padding count in the loss and {rows}")
    if run.config.freeze or adapter.wanted(run.config):
        trained, whole = count([unwrap(chunk) for chunk in run.chunks])
        say(f"training {trained} of {whole} parameters ({100 * trained / whole:.4g} %)")
