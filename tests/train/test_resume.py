"""Resuming: what a resumed run must have, lost piece by piece; layouts of the optimizer's state; kills."""

import contextlib
import dataclasses
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time

import jobs
import pytest
import torch
from forms import put_inside


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return jobs.fields(tmp_path_factory.mktemp("resume"), spec=jobs.SMALL, mock=True, train_iters=5, hidden_dropout=0.1)


# ---- what a resumed run must have ------------------------------------------------------------------------------------
def loses_the_step(patch):
    from mconv.train.checkpoints import checkpoint

    patch.setattr(checkpoint, "set_step", lambda optimizer, step: original(optimizer, 0))
    original = sys.modules["mconv.train.optim.optimizer"].set_step


def keeps_the_step_of_before_the_load(patch):
    """As megatron-core does by itself in one format."""
    from mconv.train.checkpoints import checkpoint

    patch.setattr(checkpoint, "_step_of", lambda optimizer: 1)


def shares_one_step(patch):
    """As megatron-core does by itself: one tensor, which Adam counts up once for each parameter."""
    from mconv.train.checkpoints import checkpoint
    from mconv.train.optim import optimizer

    def set_step(whole, step):
        one = torch.tensor(float(step))
        for inner in optimizer._inner(whole):
            for state in inner.state.values():
                state["step"] = one

    patch.setattr(checkpoint, "set_step", set_step)


def loses_the_moments(patch):
    from mconv.train.checkpoints import checkpoint
    from mconv.train.optim import optimizer

    original = optimizer.set_step

    def set_step(whole, step):
        original(whole, step)
        for inner in optimizer._inner(whole):
            for state in inner.state.values():
                state["exp_avg"].zero_()

    patch.setattr(checkpoint, "set_step", set_step)


def loses(field):
    """One of the values that say where a run stood."""

    def plant(patch):
        from mconv.train.checkpoints import checkpoint

        original = checkpoint.load
        patch.setattr(checkpoint, "load", lambda *a, **k: dataclasses.replace(original(*a, **k), **{field: 0}))

    return plant


def loses_the_random_states(patch):
    from mconv.train.checkpoints import checkpoint

    patch.setattr(checkpoint, "_set_rng", lambda states: None)


FAULTS = {
    "the step is lost": loses_the_step,
    "the step of before the load is kept": keeps_the_step_of_before_the_load,
    "all parameters share one step": shares_one_step,
    "the first moments are lost": loses_the_moments,
    "the data begins anew": loses("consumed"),
    "the schedule begins anew": loses("scheduled"),
    "the random states are lost": loses_the_random_states,
}


@pytest.fixture(scope="module", params=[False, True], ids=["plain", "distopt"])
def half(request, run, tmp_path_factory):
    """A run, the losses of which are known to its end, stopped after two of five steps."""
    from mconv.train.model import engine

    fields = run | {"distributed_optimizer": request.param}
    root = tmp_path_factory.mktemp("half") / "run"
    losses = jobs.train(**fields)["losses"]
    jobs.train(**fields, save=str(root), exit_after=2)
    engine.shutdown()
    return fields, root, losses


@pytest.mark.parametrize("fault", [None, *FAULTS])
def test_what_a_resume_loses_is_seen_in_the_losses(fault, half, tmp_path, monkeypatch):
    fields, root, losses = half
    shutil.copytree(root, tmp_path / "run")
    if fault:
        FAULTS[fault](monkeypatch)
    resumed = jobs.train(**fields, save=str(tmp_path / "run"))["losses"]
    assert (resumed == losses[2:]) is (fault is None), (resumed, losses)


def test_a_run_in_the_container_of_megatron_core_0_19_goes_on(run, tmp_path):
    """Whatever version is installed: mconv reads it by itself, and hands none of its pickles to megatron-core."""
    from mconv.train.model import engine

    fields = run | {"hidden_dropout": 0.0, "train_iters": 4, "save": str(tmp_path / "run")}
    losses = jobs.train(**fields)["losses"]
    engine.shutdown()
    shutil.rmtree(tmp_path / "run")
    jobs.train(**fields, exit_after=2)
    engine.shutdown()
    put_inside(tmp_path / "run/iter_0000002")
    assert jobs.train(**fields)["losses"] == losses[2:]
    engine.shutdown()


def test_the_optimizer_may_be_shared_among_replicas_or_not(half, tmp_path):
    """Saved one way, gone on with the other: not megatron-core's own loading, but the same losses (without dropout)."""
    fields, _, _ = half
    fields = fields | {"hidden_dropout": 0.0}
    whole = jobs.train(**fields)["losses"]
    jobs.train(**fields, save=str(tmp_path), exit_after=2)
    other = fields | {"distributed_optimizer": not fields["distributed_optimizer"]}
    assert jobs.train(**other, save=str(tmp_path))["losses"] == pytest.approx(whole[2:], abs=1e-6)


@pytest.mark.parametrize("first, then", [("bf16", "fp32"), ("fp32", "bf16")])
def test_the_precision_may_change(first, then, half, tmp_path):
    """The main weights and moments stay: not megatron-core's own loading, but the same losses within rounding."""
    fields = half[0] | {"hidden_dropout": 0.0, "save": str(tmp_path)}
    whole = jobs.train(**fields | {"save": None, first: True})["losses"]
    jobs.train(**fields, **{first: True}, exit_after=2)
    assert jobs.train(**fields, **{then: True})["losses"] == pytest.approx(whole[2:], abs=2e-2)


def test_the_rates_may_change(half, tmp_path):
    """The new ones count from the next step on, whatever groups megatron-core finds again by the old ones."""
    fields, root, losses = half
    shutil.copytree(root, tmp_path / "run")
    resumed = jobs.train(**fields | {"lr": 5e-3, "min_lr": 1e-4, "weight_decay": 0.5}, save=str(tmp_path / "run"))
    assert resumed["losses"][0] == losses[2] and resumed["losses"][1:] != losses[3:]


CHANGES = {
    "train_iters 5 -> 8": ({"train_iters": 8}, True),
    "lr 0.01 -> 0.005, clip_grad 1.0 -> 0.5": ({"lr": 5e-3, "clip_grad": 0.5}, False),
    "global_batch_size 4 -> 8": ({"global_batch_size": 8}, True),
    "": ({"micro_batch_size": 2, "num_workers": 0, "log_interval": 2}, False),
}
"""What is said -> the change, and whether samples may come otherwise."""


@pytest.mark.parametrize("text", CHANGES)
def test_settings_that_are_others_than_those_of_the_checkpoint(text, run):
    from mconv.train.checkpoints import settings
    from mconv.train.config import make

    change, order = CHANGES[text]
    said = list(settings.changes(make(run | change), settings.deciding(make(run)), iteration=2))
    lines = [f"warning: iteration 2 was saved under other settings: {text}"] if text else []
    assert (
        said
        == lines
        + ["warning: the order of samples may change from here on: some may be repeated, others left out"] * order
    )


def test_a_resume_under_other_settings_says_so_once(run, tmp_path):
    """The next checkpoint remembers the new ones."""
    from mconv.train.config import make
    from mconv.train.loop import train

    said = []
    for last, iterations in ((1, 5), (2, 8), (3, 8)):
        train(make(run | {"save": str(tmp_path), "exit_after": last, "train_iters": iterations}), say=said.append)
    assert sum("other settings" in line for line in said) == 1


def test_a_run_that_has_skipped_every_step_goes_on_shared_otherwise(run, tmp_path):
    """In fp16, whose first loss scales overflow: megatron-core leaves Adam's counter out of such a checkpoint."""
    fields = run | {"fp16": True, "initial_loss_scale": 2.0**28, "hidden_dropout": 0.0}
    whole = jobs.train(**fields)
    assert jobs.train(**fields, save=str(tmp_path), exit_after=2)["grad_norms"] == [None, None]
    assert jobs.train(**fields, save=str(tmp_path), distributed_optimizer=True)["losses"] == whole["losses"][2:]


# ---- Megatron-LM's formats, at layouts of several ranks ---------------------------------------------------------------
FORMATS = {
    "dp_reshardable": ({"tp": 2, "distributed_optimizer": True}, {}),
    "distrib_optim.pt": ({"tp": 2, "distributed_optimizer": True, "bf16": True}, {"distributed_optimizer": True}),
    "numbered": ({"tp": 2, "pp": 2, "bf16": True}, {"distributed_optimizer": True}),
}
"""Format -> how the run that leaves it is spread, and the optimizer that goes on."""


@pytest.mark.parametrize("form", FORMATS)
def test_every_format_goes_on_at_another_layout(form, run, world, tmp_path):
    """Saved by megatron-core's optimizers as Megatron-LM does, at tp x pp x dp; gone on with by pp 2 x dp 2."""
    layout, other = FORMATS[form]
    fields, half = run | {"hidden_dropout": 0.0}, layout.get("bf16", False)
    whole = world.run(jobs.train, **fields, **layout)[0]["losses"]
    world.run(jobs.save_like_megatron, form=form, root=str(tmp_path), **fields, **layout, exit_after=3)
    fields |= {"pp": 2, "bf16": half, "load": str(tmp_path), "resume": True, **other}
    resumed = world.run(jobs.train, **fields)[0]
    assert resumed["iteration"] == 5
    assert resumed["losses"] == pytest.approx(whole[3:], abs=2e-2 if half else 1e-5)


# ---- kills -----------------------------------------------------------------------------------------------------------
def finish_in_spite_of_kills(fields, root, *, kills, seed):
    """Start `mconv train` again and again, killing it at random moments but the last time; its log."""
    dice = random.Random(seed)
    command = [sys.executable, "-m", "mconv", "train"]
    for name, value in (fields | {"save": str(root)}).items():
        flag = f"--{name.replace('_', '-')}"
        command += [flag] if value is True else [flag, str(value)]
    for attempt in range(kills + 1):
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True)
        if attempt < kills:
            began = lines(root)
            while process.poll() is None and lines(root) == began:
                time.sleep(0.02)  # until it takes steps
            time.sleep(dice.uniform(0, 1.5))
            with contextlib.suppress(ProcessLookupError):  # it was faster
                os.killpg(process.pid, signal.SIGKILL)
        said = process.communicate()[0].decode()
    assert process.returncode == 0, said
    log = [json.loads(line) for line in (root / "train.jsonl").read_text().splitlines()]
    return [line["loss"] for line in log]


def lines(root):
    log = root / "train.jsonl"
    return log.read_text() if log.is_file() else ""


@pytest.mark.parametrize(
    "more, kills",
    [
        pytest.param({"async_save": True}, 1, id="async, one kill"),
        pytest.param({"async_save": True, "keep_last": 2}, 8, id="async, eight kills", marks=pytest.mark.big),
    ],
)
@pytest.mark.once
def test_a_run_that_is_killed_at_random_moments_has_the_losses_of_one_that_is_not(more, kills, run, world, tmp_path):
    fields = run | {"train_iters": 30 + 20 * kills, "save_interval": 3, "lr_decay_iters": 400, **more}
    killed = finish_in_spite_of_kills(fields, tmp_path / "run", kills=kills, seed=kills)
    whole = tmp_path / "whole"
    assert killed == finish_in_spite_of_kills(fields | {"save_interval": 0}, whole, kills=0, seed=0)
    assert not list((tmp_path / "run").glob(".iter*"))
