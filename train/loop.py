"""A finetuning run, top to bottom: the model, its data, the steps, the checkpoints."""

import math
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from mconv.convert.checkpoint import Checkpoint
from mconv.errors import CheckFailed, ConfigError
from mconv.spec import ModelSpec
from mconv.train import checkpoint, weights
from mconv.train import log as logs
from mconv.train.config import TrainConfig
from mconv.train.data import dataset
from mconv.train.engine import build, check_known, init
from mconv.train.mcore import (
    DistributedDataParallel,
    DistributedDataParallelConfig,
    finalize_model_grads,
    get_forward_backward_func,
    parallel_state,
    quiet,
)
from mconv.train.optimizer import make_optimizer
from mconv.train.parallel import Parallel
from mconv.train.schedule import scheduler as make_scheduler

Batches = Iterator[dict[str, Tensor]]


@dataclass(slots=True, kw_only=True)
class Run:
    """What a run carries from step to step."""

    config: TrainConfig
    parallel: Parallel
    spec: ModelSpec
    seq_length: int
    model: Any
    optimizer: Any
    scheduler: Any
    iteration: int
    """Steps taken."""
    consumed: int
    """Samples seen."""
    origin: Checkpoint
    """What the run started or went on from."""
    saved: int | None = None
    """The last iteration that is on disk."""


@quiet()
def train(config: TrainConfig, *, say: logs.Say) -> dict[str, Any]:
    """Train as `config` says; every rank calls it. Returns {"iteration", "loss", "losses", "grad_norms", "saved"}.

    Goes on from `config.save` if there is a checkpoint of this run, else starts from `config.load`. `say` gets lines
    for people, on rank 0 only. Raises ConfigError or LayoutError before the first step on what cannot work, and
    CheckFailed at a step whose loss is not finite.
    """
    run = start(config, say=say if _rank() == 0 else _silent)
    train_data, valid_data = _data(run)
    log = _log(run, say)
    steps: list[logs.Step] = []
    feed = _feed(run, train_data, consumed=run.consumed)
    while run.iteration < min(config.train_iters, config.exit_after or config.train_iters):
        steps.append(step(run, feed))
        log.step(steps[-1])
        if config.eval_interval and run.iteration % config.eval_interval == 0:
            log.evaluation(run.iteration, evaluate(run, valid_data))
        if config.save_interval and run.iteration % config.save_interval == 0:
            save(run)
    if config.save and run.saved != run.iteration:
        save(run)
    log.close()
    return {
        "iteration": run.iteration,
        "loss": steps[-1].loss if steps else None,
        "losses": [s.loss for s in steps],
        "grad_norms": [s.grad_norm for s in steps],
        "saved": str(checkpoint.folder_of(Path(config.save), run.saved)) if config.save and run.saved else None,
    }


def start(config: TrainConfig, *, say: logs.Say) -> Run:
    """Ranks, model, optimizer and schedule, new or resumed, each inherited value said."""
    parallel = Parallel(tp=config.tp, pp=config.pp, sequence_parallel=config.sequence_parallel)
    _check_folders(config)
    init(parallel, seed=config.seed)
    resumed = checkpoint.latest(Path(config.save)) if config.save else None
    source = checkpoint.folder_of(Path(str(config.save)), resumed) if resumed else Path(config.load)
    opened = weights.open_weights(str(source), vocab_size=config.vocab_size)
    _check_same_run(config, opened, resumed=bool(resumed))
    spec, seq_length = opened.spec, config.seq_length or opened.spec.max_position_embeddings
    _check(config, parallel, spec, seq_length)
    padded = weights.padded_size(opened, parallel, multiple=config.make_vocab_size_divisible_by)
    dtype = torch.bfloat16 if config.bf16 else torch.float32
    whole = build(
        spec, padded_vocab_size=padded, parallel=parallel, dtype=dtype,
        calculate_per_token_loss=True, deallocate_pipeline_outputs=True,
    )  # fmt: skip
    if not resumed:
        weights.fill(whole, opened, parallel, padded_vocab_size=padded)
    model = _data_parallel(whole, config)
    optimizer = make_optimizer(model, config)
    iteration, consumed = checkpoint.load(source, model=model, optimizer=optimizer) if resumed else (0, 0)
    run = Run(
        config=config, parallel=parallel, spec=spec, seq_length=seq_length, model=model, optimizer=optimizer,
        scheduler=make_scheduler(optimizer, config, consumed=consumed), iteration=iteration, consumed=consumed,
        saved=resumed, origin=opened,
    )  # fmt: skip
    _tell(run, padded, say)
    return run


def _check_folders(config: TrainConfig) -> None:
    """Folders that cannot be made are refused before the first step, not after the last."""
    for name in ("save", "data_cache", "tensorboard_dir"):
        if wanted := getattr(config, name):
            try:
                Path(wanted).mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise ConfigError(f"{name} {wanted} cannot be made a folder: {error.strerror}") from error


def _check_same_run(config: TrainConfig, opened: Checkpoint, *, resumed: bool) -> None:
    """A run that is gone on with must be of the model that `load` names, where that is still there."""
    if resumed and Path(config.load).is_dir() and Path(config.load).resolve() != Path(str(config.save)).resolve():
        asked = weights.open_weights(config.load, vocab_size=config.vocab_size)
        if asked.spec != opened.spec:
            raise ConfigError(f"{config.save} holds a run of another model than {config.load}; give another --save")


def _check(config: TrainConfig, parallel: Parallel, spec: ModelSpec, seq_length: int) -> None:
    """Refuse a model that cannot run and sizes that do not fit each other, before anything is built."""
    check_known(spec, what=config.load)
    replicas = parallel.data_parallel(torch.distributed.get_world_size())
    if config.global_batch_size % (config.micro_batch_size * replicas):
        raise ConfigError(
            f"global_batch_size {config.global_batch_size} is not a multiple of micro_batch_size "
            f"{config.micro_batch_size} x {replicas} replicas"
        )
    if parallel.sequence_parallel and seq_length % parallel.tp:
        raise ConfigError(f"seq_length {seq_length} is not a multiple of tp {parallel.tp}; sequence_parallel cuts it")
    if seq_length > spec.max_position_embeddings:
        raise ConfigError(f"seq_length {seq_length} is more than the model's {spec.max_position_embeddings} positions")


def _data_parallel(model: Any, config: TrainConfig) -> Any:
    """megatron-core's DDP: gradients gathered in fp32 buffers and reduced over replicas."""
    options = DistributedDataParallelConfig(
        grad_reduce_in_fp32=True, use_distributed_optimizer=config.distributed_optimizer
    )
    model.config.finalize_model_grads_func = finalize_model_grads
    wrapped = DistributedDataParallel(model.config, options, model)
    model.config.no_sync_func = wrapped.no_sync
    return wrapped


def _tell(run: Run, padded: int, say: logs.Say) -> None:
    """Say where the run stands and what it inherited."""
    world = torch.distributed.get_world_size()
    say(
        f"{'resuming' if run.iteration else 'starting'} from {run.origin.name}: "
        f"{run.spec.family}, {run.spec.num_layers} layers, "
        f"hidden {run.spec.hidden_size}, vocabulary {run.spec.vocab_size} padded to {padded}"
    )
    inherited = "" if run.config.seq_length else " (the model's max_position_embeddings)"
    say(
        f"{world} ranks: tp {run.parallel.tp} x pp {run.parallel.pp} x dp {run.parallel.data_parallel(world)}; "
        f"seq_length {run.seq_length}{inherited}; iteration {run.iteration} of {run.config.train_iters}"
    )


def _data(run: Run) -> tuple[Any, Any]:
    config, prefixes = run.config, [Path(prefix) for prefix in run.config.data]
    shares = [float(share) for share in config.split.split(",")]
    dataset.check(
        prefixes, vocab_size=run.spec.vocab_size, seq_length=run.seq_length,
        shares=shares, wanted=2 if config.eval_interval else 1,
    )  # fmt: skip
    beside = Path(config.save) / "data-cache" if config.save else prefixes[0].with_name(prefixes[0].name + ".cache")
    evaluations = config.train_iters // config.eval_interval if config.eval_interval else 0
    batch = config.global_batch_size
    return dataset.datasets(
        prefixes, weights=config.data_weights, split=config.split, seq_length=run.seq_length, seed=config.seed,
        samples=(config.train_iters * batch, evaluations * config.eval_iters * batch),
        cache=Path(config.data_cache) if config.data_cache else beside,
    )  # fmt: skip


def _log(run: Run, say: logs.Say) -> logs.Log:
    config = run.config
    options: dict[str, Any] = {
        "train_iters": config.train_iters, "global_batch_size": config.global_batch_size,
        "interval": config.log_interval,
    }  # fmt: skip
    if _rank() != 0:
        return logs.Log(say=_silent, **options)
    file = Path(config.save) / logs.NAME if config.save else None
    if file:
        file.parent.mkdir(parents=True, exist_ok=True)
        logs.forget_after(file, run.iteration)
    return logs.Log(say=say, file=file, board=logs.board(config.tensorboard_dir), **options)


def _feed(run: Run, data: Any, *, consumed: int) -> Batches | None:
    """This replica's micro batches; None on a middle stage, which needs neither tokens nor labels."""
    if not (parallel_state.is_pipeline_first_stage() or parallel_state.is_pipeline_last_stage()):
        return None
    numbers = dataset.sample_numbers(
        consumed, micro_batch_size=run.config.micro_batch_size, global_batch_size=run.config.global_batch_size,
        replica=parallel_state.get_data_parallel_rank(), replicas=parallel_state.get_data_parallel_world_size(),
    )  # fmt: skip
    return dataset.batches(data, numbers, device=torch.cuda.current_device())


def step(run: Run, feed: Batches | None) -> logs.Step:
    """One optimizer step over one global batch."""
    began = time.perf_counter()
    run.model.zero_grad_buffer()
    run.optimizer.zero_grad()
    loss = _forward_backward(run, feed, forward_only=False)
    if not math.isfinite(loss):
        raise CheckFailed(f"loss is {loss} at iteration {run.iteration + 1}; the last checkpoint is {run.saved}")
    _, norm, _ = run.optimizer.step()
    run.iteration += 1
    run.consumed += run.config.global_batch_size
    run.scheduler.step(run.config.global_batch_size)
    seconds = time.perf_counter() - began
    return logs.Step(
        iteration=run.iteration,
        consumed_samples=run.consumed,
        loss=loss,
        grad_norm=None if norm is None else float(norm),
        lr=float(run.optimizer.param_groups[0]["lr"]),
        seconds=seconds,
        tokens_per_second=run.config.global_batch_size * run.seq_length / seconds,
    )


@torch.no_grad()
def evaluate(run: Run, data: Any) -> float:
    """Mean loss over `eval_iters` global batches of validation data: each evaluation takes the next ones."""
    config = run.config
    done = run.iteration // config.eval_interval - 1
    feed = _feed(run, data, consumed=done * config.eval_iters * config.global_batch_size)
    run.model.eval()
    losses = [_forward_backward(run, feed, forward_only=True) for _ in range(config.eval_iters)]
    run.model.train()
    return sum(losses) / len(losses)


def _forward_backward(run: Run, feed: Batches | None, *, forward_only: bool) -> float:
    """megatron-core's schedule over one global batch; the mean loss over its tokens, on every rank."""
    config = run.config
    replicas = parallel_state.get_data_parallel_world_size()
    parts = get_forward_backward_func()(
        forward_step_func=_forward,
        data_iterator=feed,
        model=[run.model],
        num_microbatches=config.global_batch_size // (config.micro_batch_size * replicas),
        seq_length=run.seq_length,
        micro_batch_size=config.micro_batch_size,
        forward_only=forward_only,
    )
    # fp64 would be exact; fp32 sums over micro batches agree to about 1e-7
    total = torch.stack(parts).sum(0) if parts else torch.zeros(2, device=torch.cuda.current_device())
    torch.distributed.all_reduce(total, group=parallel_state.get_data_parallel_group())
    last = parallel_state.get_pipeline_model_parallel_last_rank()
    torch.distributed.broadcast(total, src=last, group=parallel_state.get_pipeline_model_parallel_group())
    return float(total[0] / total[1])


def _forward(feed: Batches | None, model: Any) -> tuple[Tensor, Callable[[Tensor], Any]]:
    """One stage's forward over one micro batch, in the form that megatron-core's schedules call."""
    batch = next(feed) if feed else {}
    output = model(batch.get("tokens"), batch.get("position_ids"), None, labels=batch.get("labels"))
    return output, lambda losses: _loss(batch["loss_mask"], losses)  # called on the last stage, which has a batch


def _loss(mask: Float[Tensor, "b s"], losses: Float[Tensor, "b s"]) -> tuple[Tensor, Tensor, Tensor]:
    """(sum to differentiate, tokens to divide by, both for the log): megatron-core divides over the global batch."""
    total, tokens = (losses * mask).sum(), mask.sum()
    return total, tokens.int(), torch.stack([total.detach(), tokens])


def save(run: Run) -> None:
    """Write a checkpoint of the run as it stands."""
    checkpoint.save(
        Path(str(run.config.save)), iteration=run.iteration, consumed=run.consumed, model=run.model,
        optimizer=run.optimizer, scheduler=run.scheduler, spec=run.spec, parallel=run.parallel, origin=run.origin,
    )  # fmt: skip
    run.saved = run.iteration


def _rank() -> int:
    return int(os.environ.get("RANK", "0")) if not torch.distributed.is_initialized() else torch.distributed.get_rank()


def _silent(_: str) -> None: ...
