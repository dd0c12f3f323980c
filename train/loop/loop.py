"""A run, top to bottom: the model, its data, the steps, the checkpoints."""

import contextlib
import dataclasses
import os
import time
from pathlib import Path
from typing import Any

import torch

from mconv.train.checkpoints.finished import Finished, finished
from mconv.train.checkpoints.folders import folder_of
from mconv.train.config import TrainConfig
from mconv.train.launch import answer, chain, stop
from mconv.train.logs import log as logs
from mconv.train.logs import record, redact
from mconv.train.logs.boards import boards
from mconv.train.logs.meter import meter
from mconv.train.loop import garbage
from mconv.train.loop.callbacks import Callbacks, callbacks
from mconv.train.loop.evaluate import evaluate
from mconv.train.loop.feed import Sets, feed, last_drawn, other_data, sets
from mconv.train.loop.profile import Profile, profiling
from mconv.train.loop.run import Run, save
from mconv.train.loop.start import start
from mconv.train.loop.steps import step
from mconv.train.loop.unsaved import unsaved
from mconv.train.megatron import collectives
from mconv.train.megatron.imports import quiet
from mconv.train.megatron.parallel import init, parallel_of, rank
from mconv.train.model.engine import unwrap


@quiet()
def train(config: TrainConfig, *, say: logs.Say, show: logs.Show | None = None) -> dict[str, Any]:
    """Train as `config` says; every rank calls it.

    Returns {"iteration", "iterations", "loss", "losses", "grad_norms", "saved", "stopped"}: where the run stands, of how
    many, and why it ended before its last iteration, or None; and what was measured after that, under "validation" and
    "test". Goes on from `config.save`
    if there is a checkpoint of this run, else starts from `config.load`. `say` gets lines for people, on rank 0 only;
    `show`, for a live view, each step's record in the place of its printed line. Inside `stop.listening()` it stops at
    signals. Raises ConfigError or LayoutError before the first step on what cannot work, and CheckFailed at a step that
    a guard stops.
    """
    began = time.monotonic()
    say = say if rank() == 0 else _silent
    if done := _finished(config):
        for line in done.lines():
            say(line)
        return _nothing(done)
    run = start(config, say=say)
    say("preparing the data")
    data = sets(run, say)
    if config.eval_only:
        return _result(run, [], why=None) | _at_the_end(run, data, _plain(run, say))
    saving = run.saver.at_work() if run.saver else contextlib.nullcontext()
    with saving, garbage.by_hand(config.manual_gc_interval), profiling(config, say=say) as profile:
        return _steps(run, data, profile, began=began, say=say, show=show)


def _steps(
    run: Run, data: Sets, profile: Profile, *, began: float, say: logs.Say, show: logs.Show | None
) -> dict[str, Any]:
    """Take the steps of a run that holds its folder, and evaluate after the last one."""
    config = run.config
    log, after = _log(run, say, show), callbacks(run, say=say)
    if run.saver:
        run.saver.read = after.read
    halts = stop.stop_conditions(config, rank=rank(), began=began)
    steps: list[logs.Step] = []
    risk = unsaved(config, iteration=run.iteration, iterations=run.iterations)
    for line in other_data(run, data.train):
        say(line)
    batches = feed(run, data.train, consumed=run.consumed)
    decision, end = halts.ask(run.iteration, first=True), min(run.iterations, config.exit_after or run.iterations)
    while run.iteration < end and not decision.stop:
        if not steps:
            say("taking the first step, which is slower than those after it")
        with profile.of(run.iteration + 1):
            steps.append(step(run, batches, again=lambda: feed(run, data.train, consumed=run.consumed)))
        chain.stepped()
        log.step(steps[-1])
        garbage.collect(run.iteration, every=config.manual_gc_interval)
        if warning := risk.step(run.iteration, steps[-1].seconds):
            say(warning)
        if run.saver:
            run.saver.poll()
        if config.eval_interval and run.iteration % config.eval_interval == 0:
            answer.doing("evaluation", run.iteration)
            log.evaluation(run.iteration, evaluate(run, feed(run, data.valid, consumed=_validated(run, before=True))))
        decision = halts.ask(run.iteration)
        if decision.save or _due(run):
            _save(run, data, after, last=decision.stop or run.iteration == end)
            _done(halts, decision, say)
    if steps:
        _save(run, data, after, last=True)
    answer.doing("end", run.iteration)
    measured = _at_the_end(run, data, log) if steps and run.iteration == run.iterations else {}
    _done(halts, decision, say)
    after.close()
    log.close()
    chain.stopped(decision.why)
    return _result(run, steps, why=decision.why) | measured


def _due(run: Run) -> bool:
    """Return whether a checkpoint is due by `save_interval`, or to replace one that was lost."""
    interval = run.config.save_interval
    return bool(interval and run.iteration % interval == 0) or bool(run.saver and run.saver.owed)


def _done(halts: stop.StopConditions, decision: stop.StopDecision, say: logs.Say) -> None:
    for line in halts.done(decision):
        say(line)


def _result(run: Run, steps: list[logs.Step], *, why: str | None) -> dict[str, Any]:
    """Return what `train` returns of a run's steps."""
    return {
        "iteration": run.iteration,
        "iterations": run.iterations,
        "loss": steps[-1].loss if steps else None,
        "losses": [s.loss for s in steps],
        "grad_norms": [s.grad_norm for s in steps],
        "saved": str(folder_of(Path(run.config.save), run.saved)) if run.config.save and run.saved else None,
        "stopped": why,
    }


def _finished(config: TrainConfig) -> Finished | None:
    """Return where a run ended that has no step left, as rank 0 finds it: all ranks do the same then."""
    if config.save is None or config.eval_only:
        return None
    init(parallel_of(config), seed=config.seed)
    return collectives.on_rank_0(lambda: finished(config))


def _nothing(done: Finished) -> dict[str, Any]:
    """Return what `train` returns of a run that had no step left."""
    stands: dict[str, Any] = {"iteration": done.iteration, "iterations": done.of, "saved": str(done.folder)}
    return {**stands, "loss": None, "losses": [], "grad_norms": [], "stopped": None}


def _at_the_end(run: Run, data: Sets, log: logs.Log) -> dict[str, dict[str, float]]:
    """Evaluate on the validation and test data that there are, when no step is left."""
    feeds = {"test": (data.test, 0)}
    if run.config.eval_interval or run.config.eval_only:
        feeds = {"validation": (data.valid, _validated(run)), **feeds}
    measured = {}
    for on, (held, consumed) in feeds.items():
        if held is not None:
            measured[on] = evaluate(run, feed(run, held, consumed=consumed))
            log.evaluation(run.iteration, measured[on], on=on, last=True)
    return measured


def _save(run: Run, data: Sets, after: Callbacks, *, last: bool = False) -> None:
    """Save a checkpoint if the run has a folder, and do what follows one.

    After the `last` step the save is waited for; it also replaces a background save that was lost.
    """
    if run.saver and last:
        run.saver.settle()
        run.saver.background, run.saver.last = False, True
    if run.saver and not run.saver.has(run.iteration):
        iteration, consumed = run.iteration, run.consumed
        if last:  # another one is followed by a step, after which the run stops
            answer.doing("save", iteration)
        run.say(f"saving iteration {iteration} to {run.config.save}")
        run.memory["sample"] = last_drawn(run, data.train)
        with stop.held_back():  # also from the process that writes, which a signal to every process would end
            save(run, then=lambda: after.checkpoint(iteration, consumed))


def _log(run: Run, say: logs.Say, show: logs.Show | None) -> logs.Log:
    """Return the log of rank 0, with its boards; prints and records the arguments of the run."""
    config, world = run.config, torch.distributed.get_world_size()
    log = _plain(run, say)
    if rank() != 0:
        return log
    file = Path(config.save) / logs.NAME if config.save else None
    if file:
        try:
            logs.forget_after(file, run.iteration)
            for note in record.write(file.parent, config, run.spec, ranks=world, iteration=run.iteration):
                say(note)
        except OSError as error:  # a full disk
            say(f"warning: {file.parent}/{record.NAME} was not written: {error}; the run continues without it")
    for line in record.arguments(config, run.spec, inherited=run.inherited, source=run.origin.name):
        say(line)
    dtype = str(unwrap(run.chunks[0]).config.params_dtype).removeprefix("torch.")
    speed = meter(per_token=run.flops_per_token, train_iters=run.iterations, ranks=world, dtype=dtype)
    described = redact.hidden({"model": run.spec.to_dict(), **vars(config)}, redact.secrets(os.environ))
    return dataclasses.replace(
        log, show=show, file=file, boards=boards(config, described=described, iteration=run.iteration), meter=speed,
        throughput=config.log_throughput,
    )  # fmt: skip


def _plain(run: Run, say: logs.Say) -> logs.Log:
    """Return a log that only prints."""
    return logs.Log(
        say=say, train_iters=run.iterations, global_batch_size=run.config.global_batch_size,
        interval=run.config.log_interval,
    )  # fmt: skip


def _validated(run: Run, *, before: bool = False) -> int:
    """Return the validation samples used so far, or `before` the evaluation at this iteration: each takes new ones."""
    config = run.config
    done = run.iteration // config.eval_interval - before if config.eval_interval else 0
    return done * config.eval_iters * config.global_batch_size


def _silent(_: str) -> None: ...
