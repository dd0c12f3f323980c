"""A run, top to bottom: the model, its data, the steps, the checkpoints."""

import math
import os
from pathlib import Path
from typing import Any

import torch

from mconv.train import checkpoint
from mconv.train import log as logs
from mconv.train.config import TrainConfig
from mconv.train.data import dataset
from mconv.train.length import length
from mconv.train.mcore import parallel_state, quiet
from mconv.train.run import Run, save, start
from mconv.train.steps import Batches, evaluate, step


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
    while run.iteration < min(run.iterations, config.exit_after or run.iterations):
        steps.append(step(run, feed))
        log.step(steps[-1])
        if config.eval_interval and run.iteration % config.eval_interval == 0:
            loss = evaluate(run, _validation(run, valid_data))
            log.evaluation(run.iteration, {"loss": loss, "perplexity": math.exp(min(20, loss))})
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


def _data(run: Run) -> tuple[Any, Any]:
    config, prefixes = run.config, [Path(prefix) for prefix in run.config.data]
    shares = [float(share) for share in config.split.split(",")]
    dataset.check(
        prefixes, vocab_size=run.spec.vocab_size, seq_length=run.seq_length,
        shares=shares, wanted=2 if config.eval_interval else 1,
    )  # fmt: skip
    beside = Path(config.save) / "data-cache" if config.save else prefixes[0].with_name(prefixes[0].name + ".cache")
    evaluations = run.iterations // config.eval_interval if config.eval_interval else 0
    batch = config.global_batch_size
    return dataset.datasets(
        prefixes, weights=config.data_weights, split=config.split, seq_length=run.seq_length, seed=config.seed,
        samples=(length(config).samples, evaluations * config.eval_iters * batch),
        cache=Path(config.data_cache) if config.data_cache else beside,
    )  # fmt: skip


def _log(run: Run, say: logs.Say) -> logs.Log:
    config = run.config
    options: dict[str, Any] = {
        "train_iters": run.iterations, "global_batch_size": config.global_batch_size,
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


def _validation(run: Run, data: Any) -> Batches | None:
    """The batches of the evaluation that is due: each takes the next ones."""
    config = run.config
    done = run.iteration // config.eval_interval - 1
    return _feed(run, data, consumed=done * config.eval_iters * config.global_batch_size)


def _rank() -> int:
    return int(os.environ.get("RANK", "0")) if not torch.distributed.is_initialized() else torch.distributed.get_rank()


def _silent(_: str) -> None: ...
