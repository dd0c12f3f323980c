"""`mconv plan --gpu-memory` and `--suggest`: what fits, what would make it fit, and the estimate of a step's time."""

import dataclasses
import itertools
import json
import re

import pytest

from mconv.cli.app import run as mconv
from mconv.train.config import make
from mconv.train.estimate import flops, speed
from mconv.train.estimate.plan import plan, setting_of
from mconv.train.estimate.storage import OVERHEAD, kept
from mconv.train.estimate.suggest import flags
from mconv.train.estimate.units import duration
from mconv.train.model.trainable import Trainable

pytestmark = pytest.mark.once


def planned(capsys, line, code=0):
    """What `mconv plan` says to programs."""
    assert mconv(["plan", *line.split(), "--json"]) == code
    return json.loads(capsys.readouterr().out)


SEVEN = "--preset llama2-7b --bf16 --global-batch-size 256 "


@pytest.mark.parametrize(
    "seconds, says",
    [
        (0.2, "less than 1 s"), (45, "45 s"), (59.9, "60 s"), (24 * 60, "24 min"), (3599, "59 min"), (8640, "2 h 24 min"),
        (7200, "2 h"), (86399, "23 h 59 min"), (3.2 * 86400, "3.2 days"), (11.2 * 365 * 86400, "11 years"),
        (1.5 * 365 * 86400, "1.5 years"),
    ],
)  # fmt: skip
def test_times_are_said_in_the_units_that_matter(seconds, says):
    assert duration(float(seconds)) == says


def test_a_short_run_takes_hours_and_minutes(capsys):
    assert mconv(["plan", *SEVEN.split(), "--train-iters", "12", "--tflops", "400"]) == 0
    assert "400.0 TFLOP/s a rank: 24 min" in capsys.readouterr().out


def test_memory_that_fits_or_does_not(capsys):
    """2 GB and 5 % of a GPU are left; the fullest moment is the backward pass, or AdamW's square roots in the step."""
    told = planned(capsys, SEVEN + "--gpu-memory 80", code=1)["gpu_memory"]
    assert (told["memory"], told["usable"], told["fits"]) == (80 * 10**9, 74 * 10**9, False)
    one = plan(
        make({"init": "random", "preset": "llama2-7b", "bf16": True, "data": ["x"], "lr": 1, "train_iters": 1})
    ).ranks[0]
    assert told["stages"][0]["peak"] == one.peak == 18 * 6738415616 + max(one.activations, 4 * 6738415616)
    told = planned(capsys, SEVEN + "--gpu-memory 80 --world-size 8 --distributed-optimizer")["gpu_memory"]
    assert told["fits"] and told["would_fit"] == [] and told["stages"][0]["free"] > 0
    assert mconv(["plan", *SEVEN.split(), "--gpu-memory", "80", "--tp", "2", "--pp", "2"]) == 0
    assert (
        "fits        yes: the fullest rank (stage 0) needs" in (text := capsys.readouterr().out)
        and "74.0 GB of 80.0" in text
    )


@pytest.mark.parametrize(
    "line, first",
    [
        ("--world-size 8", "distributed_optimizer"),
        ("--world-size 8 --micro-batch-size 4 --distributed-optimizer", "micro_batch_size"),
        ("--tp 2 --micro-batch-size 2", "tp"), ("--world-size 4 --pp 2 --micro-batch-size 4", None),
    ],
)  # fmt: skip
def test_what_would_fit_does(line, first, capsys):
    """Each change that is named is tried: with it the same plan fits."""
    told = planned(capsys, f"{SEVEN}{line} --gpu-memory 80", code=1)
    changes = told["gpu_memory"]["would_fit"]
    assert changes and (first is None or first in changes[0]["fields"])
    for change in changes:
        words = f"{SEVEN}{line} {flags(change['fields'], whole=True)} --world-size {change['world']} --gpu-memory 80"
        last = {flag.split()[0]: flag for flag in re.findall(r"--\S+(?: (?!--)\S+)*", words)}  # a flag may be there twice
        fits = planned(capsys, " ".join(last.values()))["gpu_memory"]
        assert max(stage["peak"] for stage in fits["stages"]) == change["peak"]


def test_changes_that_fit_only_together_and_more_gpus(capsys):
    line = "--preset llama2-70b --bf16 --global-batch-size 64 --world-size 64 --gpu-memory 80"
    (change,) = planned(capsys, line, code=1)["gpu_memory"]["would_fit"]
    assert len(change["fields"]) > 1 and change["peak"] <= 74 * 10**9
    assert mconv(["plan", *line.split()]) == 1
    assert ", all together" in capsys.readouterr().out
    line = "--preset llama2-70b --bf16 --global-batch-size 64 --world-size 8 --gpu-memory 80"
    assert mconv(["plan", *line.split()]) == 1
    assert re.search(r"nothing on 8; .*--world-size (16|32) \(\1 GPUs\)", capsys.readouterr().out)


def test_suggestions_fit_and_are_in_order(capsys):
    base = "--preset llama2-13b --bf16 --global-batch-size 128 --world-size 16 --gpu-memory 80"
    told = planned(capsys, base + " --suggest")["suggestions"]
    assert len(told) == 5 and len({(one["fields"]["tp"], one["fields"]["pp"]) for one in told}) == 5
    seconds = [one["step"]["seconds"] for one in told]
    assert all(slow > fast * 0.98 for fast, slow in itertools.pairwise(seconds))  # in steps of 1 %
    for one in told:
        pasted = planned(capsys, f"{base} {one['flags']}")
        assert pasted["micro_batches"] == one["micro_batches"] and pasted["layout"]["dp"] == one["dp"]
        assert max(stage["peak"] for stage in pasted["gpu_memory"]["stages"]) == one["peak"] <= 74 * 10**9
    kept = planned(capsys, base + " --suggest --pp 2 --recompute-granularity full")["suggestions"]
    assert {one["fields"]["pp"] for one in kept} == {2}
    assert {one["fields"]["recompute_granularity"] for one in kept} == {"full"}


def test_suggestions_for_people(capsys):
    line = "plan --preset llama2-7b --bf16 --lora-rank 8 --world-size 8 --gpu-memory 80 --suggest"
    assert mconv(line.split()) == 0
    text = capsys.readouterr().out
    assert "global_batch_size 8 (the default; give yours)" in text and "\n1: " in text and "not a measurement" in text
    assert mconv([*line.split()[:-1], "--suggest", "--gpu-memory", "80"]) == 2
    assert mconv(["plan", "--preset", "llama2-70b", "--bf16", "--gpus", "1", "--gpu-memory", "80", "--suggest"]) == 1
    assert "no layout fits on 1 GPUs" in capsys.readouterr().out


@pytest.mark.parametrize(
    "line, says",
    [
        ("--suggest --gpu-memory 80", "--suggest needs the GPUs: --world-size"),
        ("--suggest --gpus 8", "--suggest needs the GPUs"), ("--gpu-memory 1", "--gpu-memory 1 leaves nothing for a run"),
        ("--gpu-memory nan", "the GB of one GPU"),
        ("--suggest --gpus 7 --gpu-memory 80", "not a multiple of the replicas of any layout; 7 are"),
        ("--suggest --gpus 8 --tp 3 --gpu-memory 80", "--tp 3 does not divide 8 GPUs"),
    ],
)  # fmt: skip
def test_gpus_that_cannot_be(line, says, capsys):
    assert mconv(["plan", "--preset", "llama2-7b", *line.split()]) == 2
    assert says in capsys.readouterr().err


def test_a_steps_time_by_hand():
    """Operations over rate; the bubble of 3 stages of warm-up in chunks; imbalance of the stage with the output layer."""
    config = make({"init": "random", "preset": "llama2-7b", "bf16": True, "data": ["x"], "lr": 1, "train_iters": 1,
                   "pp": 4, "vpp": 2, "global_batch_size": 8})  # fmt: skip
    made = plan(config)
    setting = setting_of(config, Trainable(), seq_length=4096, micro_batches=8, replicas=1, cpu=False)
    step = speed.step(config, made.origin.spec, made.layout, setting, trained=0, machine=speed.Machine(tflops=100.0))
    assert step.compute == pytest.approx(made.flops_per_iteration / (4 * 1e14))
    once = flops.forward(made.origin.spec, 4096)
    slowest = ((once.total - once.head) / 4 + once.head) / (once.total / 4)
    assert step.imbalance == pytest.approx(step.compute * (slowest - 1))
    assert step.bubble == pytest.approx(step.compute / 8 * slowest * 3 / 2)
    assert (step.recompute, step.tensor, step.data) == (0, 0, 0) and step.pipeline > 0
    pair = setting_of(config, Trainable(), seq_length=4096, micro_batches=4, replicas=2, cpu=False)
    options = {"trained": 4 * 10**9, "machine": speed.Machine(tflops=100.0, node=1)}
    apart = speed.step(config, made.origin.spec, made.layout, pair, **options)
    assert apart.data == pytest.approx(4 * 2 * 1e9 / (2 * 40e9))  # an all-reduce of fp32 gradients
    hidden = dataclasses.replace(config, overlap_grad_reduce=True)
    assert speed.step(hidden, made.origin.spec, made.layout, pair, **options).data == 0
    full = dataclasses.replace(config, recompute_granularity="full")
    again = speed.step(full, made.origin.spec, made.layout, setting, trained=0, machine=speed.Machine(tflops=100.0))
    assert again.recompute == pytest.approx(step.compute / 3 * (once.total - once.head) / once.total)


def test_bytes_on_disk(capsys):
    """Half-precision weights, fp32 main weights and two moments."""
    disk = planned(capsys, SEVEN)["disk"]
    assert disk == {"checkpoint": 6738415616 * (2 + 12) + OVERHEAD, "export": 6738415616 * 2}
    config = make({"load": "x", "data": ["x"], "lr": 1, "train_iters": 100, "save": "s", "save_interval": 30})
    counts = [
        kept(dataclasses.replace(config, **fields), 100)
        for fields in ({}, {"keep_last": 2}, {"keep_last": 2, "keep_every": 60}, {"save_interval": 0})
    ]
    assert counts == [4, 2, 3, 1] and kept(config, None) is None
