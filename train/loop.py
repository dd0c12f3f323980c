"""A run, top to bottom: the model, its data, the steps, the checkpoints."""

import contextlib
import math
import os
import time
from pathlib import Path
from typing import Any

import torch

from mconv.train import chain, record, stop
from mconv.train import log as logs
from mconv.train.boards import boards
from mconv.train.config import TrainConfig
from mconv.train.data.feed import feed, sets
from mconv.train.engine import unwrap
from mconv.train.follow import Follow, follow
from mconv.train.mcore import quiet
from mconv.train.meter import meter
from mconv.train.run import Run, save, start
from mconv.train.saving import folder_of
from mconv.train.steps import Batches, evaluate, step


@quiet()
def train(config: TrainConfig, *, say: logs.Say, show: logs.Show | None = None) -> dict[str, Any]:
    """Train as `config` says; every rank calls it.

    Returns {"iteration", "loss", "losses", "grad_norms", "saved", "stopped"}, the last being why the run ended before its
    last iteration, or None. Goes on from `config.save` if there is a checkpoint of this run, else starts from
    `config.load`. `say` gets lines for people, on rank 0 only; `show`, for a live view, each step's record in the place
    of its printed line. Inside `stop.listening()` it stops at signals. Raises ConfigError or LayoutError before the first
    step on what cannot work, and CheckFailed at a step whose loss is not finite.
    """
    began = time.time()
    say = say if _rank() == 0 else _silent
    run = start(config, say=say)
    data = sets(run, say)
    log, after = _log(run, say, show), follow(run, say=say)
    halts = stop.stops(config, rank=_rank(), began=began)
    steps: list[logs.Step] = []
    batches = feed(run, data.train, consumed=run.consumed)
    word = halts.ask(run.iteration, first=True)
    with run.saver.settled() if run.saver else contextlib.nullcontext():
        while run.iteration < min(run.iterations, config.exit_after or run.iterations) and not word.stop:
            steps.append(step(run, batches))
            chain.stepped()
            log.step(steps[-1])
            if run.saver:
                run.saver.poll()
            if config.eval_interval and run.iteration % config.eval_interval == 0:
                log.evaluation(run.iteration, _measured(run, feed(run, data.valid, consumed=_validated(run))))
            word = halts.ask(run.iteration)
            if word.save or (config.save_interval and run.iteration % config.save_interval == 0):
                _save(run, after)
                halts.done(word)
        if steps:
            _save(run, after)
    if data.test is not None and run.iteration == run.iterations:
        log.evaluation(run.iteration, _measured(run, feed(run, data.test, consumed=0)), on="test", last=True)
    halts.done(word)
    after.close()
    log.close()
    return {
        "iteration": run.iteration,
        "loss": steps[-1].loss if steps else None,
        "losses": [s.loss for s in steps],
        "grad_norms": [s.grad_norm for s in steps],
        "saved": str(folder_of(Path(config.save), run.saved)) if config.save and run.saved else None,
        "stopped": word.why,
    }


def _save(run: Run, after: Follow) -> None:
    """A checkpoint of the run as it stands, where it has a folder for that, and what follows one."""
    if run.saver and run.iteration not in (run.saver.saved, run.saver.pending):
        iteration, consumed = run.iteration, run.consumed
        with stop.held_back():  # also from helpers that saving starts, which a signal to every process would end
            save(run, then=lambda: after.checkpoint(iteration, consumed))


def _log(run: Run, say: logs.Say, show: logs.Show | None) -> logs.Log:
    """Rank 0's log, with its boards; what the run is started with is said and recorded here."""
    config, world = run.config, torch.distributed.get_world_size()
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
        record.write(file.parent, config, run.spec, ranks=world, iteration=run.iteration)
    for line in record.arguments(config, run.spec, inherited=run.inherited, source=run.origin.name):
        say(line)
    dtype = str(unwrap(run.chunks[0]).config.params_dtype).removeprefix("torch.")
    speed = meter(run.spec, seq_length=run.seq_length, train_iters=run.iterations, ranks=world, dtype=dtype)
    described = {"model": run.spec.to_dict(), **vars(config)}
    return logs.Log(
        say=say, show=show, file=file, boards=boards(config, described=described), meter=speed,
        throughput=config.log_throughput, **options,
    )  # fmt: skip


def _measured(run: Run, batches: Batches | None) -> dict[str, float]:
    loss = evaluate(run, batches)
    return {"loss": loss, "perplexity": math.exp(min(20, loss))}


def _validated(run: Run) -> int:
    """Samples that the evaluations before the one that is due took: each takes the next ones."""
    config = run.config
    return (run.iteration // config.eval_interval - 1) * config.eval_iters * config.global_batch_size


def _rank() -> int:
    return int(os.environ.get("RANK", "0")) if not torch.distributed.is_initialized() else torch.distributed.get_rank()


def _silent(_: str) -> None: ...
