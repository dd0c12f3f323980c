"""How long a run is and at what rate it goes: no model, megatron-core's own scheduler."""

import math

import pytest

from mconv.errors import ConfigError
from mconv.train import config as configs

pytestmark = pytest.mark.once

NEEDED = {"load": "x", "data": ["p"], "lr": 1.0}
SEED = {
    "load": "x", "data": ["p"], "global_batch_size": 288, "train_samples": 146484375, "lr": 6e-5, "min_lr": 6e-6,
    "lr_decay_samples": 126953125, "lr_warmup_samples": 183105,
}  # fmt: skip
"""Of a public guide, with the numbers that its log shows."""


class Optimizer:
    """The groups that a scheduler sets: matrices, and what has no decay."""

    def __init__(self):
        self.param_groups = [{"wd_mult": 1.0}, {"wd_mult": 0.0}]


def course(steps, **fields):
    """(rate, decay) before each step, of a schedule that megatron-core keeps."""
    from mconv.train.config.length import batch_size
    from mconv.train.optim.schedule import scheduler

    config, optimizer, consumed, seen = configs.make(fields), Optimizer(), 0, []
    made = scheduler(optimizer, config)
    for _ in range(steps):
        seen.append((optimizer.param_groups[0]["lr"], optimizer.param_groups[0]["weight_decay"]))
        consumed += (size := batch_size(config, consumed))
        made.step(size)
    assert optimizer.param_groups[1]["weight_decay"] == 0
    return seen


def rates(steps, **fields):
    return [rate for rate, _ in course(steps, **fields)]


def test_a_sample_based_run_has_the_seeds_numbers():
    from mconv.train.config.length import run_length

    assert run_length(configs.make(SEED)).iterations == 508626
    two = SEED | {"global_batch_size": 2}
    assert run_length(configs.make(two)).iterations == 73242187
    # the log prints the rate of the next step
    assert [f"{rate:.3E}" for rate in rates(28, **two)[25:]] == ["1.638E-08", "1.704E-08", "1.769E-08"]


STYLES = {
    "cosine": 0.1 + 0.45 * (1 + math.cos(math.pi / 2)),
    "linear": 0.55,
    "constant": 1.0,
    "inverse-square-root": (2 / 6) ** 0.5,
}


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("unit", ["iters", "samples", "fraction"])
def test_rates(style, unit):
    """A warmup of 2 steps from 0.2, the middle of the decay, and what is after it; said in any unit."""
    each = 1 if unit != "samples" else 8
    counted = "samples" if unit == "samples" else "iters"
    warmup = {"lr_warmup_fraction": 0.2} if unit == "fraction" else {f"lr_warmup_{counted}": 2 * each}
    fields = NEEDED | {f"train_{counted}": 12 * each, f"lr_decay_{counted}": 10 * each, "min_lr": 0.1}
    found = rates(12, **fields, **warmup, lr_warmup_init=0.2, lr_decay_style=style)
    assert found[:3] == pytest.approx([0.2, 0.6, 1.0])
    assert found[6] == pytest.approx(STYLES[style])
    assert found[11] == pytest.approx(1.0 if style == "constant" else 0.1)


FALLS = {"linear": 0.5, "cosine": 0.5, "exponential": 2 * 0.5**0.5 - 1, "minus_sqrt": 1 - 0.5**0.5}


@pytest.mark.parametrize("fall", FALLS)
def test_wsd_stays_high_and_falls_at_the_end(fall):
    fields = {"train_iters": 10, "lr_decay_style": "WSD", "lr_wsd_decay_iters": 4, "lr_wsd_decay_style": fall}
    found = rates(11, **NEEDED, **fields)
    assert found[:7] == [1.0] * 7 and found[8] == pytest.approx(FALLS[fall]) and found[10] == pytest.approx(0)


@pytest.mark.parametrize(("style", "middle"), [("linear", 0.2), ("cosine", 0.2), ("constant", 0.01)])
def test_weight_decay_grows(style, middle):
    ends = {} if style == "constant" else {"start_weight_decay": 0.1, "end_weight_decay": 0.3}
    found = [decay for _, decay in course(9, **NEEDED, train_iters=8, weight_decay_incr_style=style, **ends)]
    assert found[4] == pytest.approx(middle) and found[8] == pytest.approx(ends.get("end_weight_decay", 0.01))
    assert style != "cosine" or found[1] < 0.1 + 0.2 / 8  # slower at first than a line


BAD = {
    "neither": ({}, "the length of the run is not set: give train_iters or train_samples"),
    "both": ({"train_iters": 5, "train_samples": 40}, "train_iters and train_samples are both set"),
    "no batch": ({"train_samples": 7}, "less than one global batch of 8"),
    "no rate": ({"train_iters": 5, "lr": None}, "lr is not set"),
    "samples for iters": ({"train_iters": 5, "lr_decay_samples": 9}, "use lr_decay_iters"),
    "iters for samples": ({"train_samples": 80, "lr_warmup_iters": 1}, "use lr_warmup_samples"),
    "two warmups": ({"train_iters": 5, "lr_warmup_iters": 1, "lr_warmup_fraction": 0.1}, "give one of them"),
    "no warmup": ({"train_iters": 5, "lr_warmup_init": 0.1}, "there is no warmup"),
    "no fall": ({"train_iters": 5, "lr_decay_style": "WSD"}, "WSD, which needs it"),
    "a fall": ({"train_iters": 5, "lr_wsd_decay_iters": 2}, "the style is cosine"),
    "long warmup": ({"train_samples": 80, "lr_warmup_samples": 80}, "less than lr_decay_samples"),
    "long fall": ({"train_iters": 9, "lr_decay_style": "WSD", "lr_warmup_iters": 5, "lr_wsd_decay_iters": 5},
                  "do not fit"),
    "ramp of steps": ({"train_iters": 5, "rampup_batch_size": [2, 2, 8]}, "use train_samples"),
    "ramp of two": ({"train_samples": 80, "rampup_batch_size": [2, 2]}, "three numbers"),
    "uneven ramp": ({"train_samples": 80, "rampup_batch_size": [2, 4, 8]}, "in steps of 4"),
    "ramp down": ({"train_samples": 80, "rampup_batch_size": [16, 4, 8]}, "does not go from 16"),
    "one end": ({"train_iters": 5, "weight_decay_incr_style": "linear", "start_weight_decay": 0.1}, "both needed"),
    "no style": ({"train_iters": 5, "start_weight_decay": 0.1, "end_weight_decay": 0.2}, "not used where it is constant"),
    "shrinking": ({"train_iters": 5, "weight_decay_incr_style": "linear", "start_weight_decay": 0.2,
                   "end_weight_decay": 0.1}, "must not be more than"),
    "shared sgd": ({"train_iters": 5, "optimizer": "sgd", "distributed_optimizer": True}, "Adam's state only"),
    "two precisions": ({"train_iters": 5, "fp16": True, "bf16": True}, "set one of them"),
    "scale of bf16": ({"train_iters": 5, "bf16": True, "loss_scale": 2.0}, "loss_scale is for fp16"),
    "scale of 0": ({"train_iters": 5, "fp16": True, "loss_scale": 0.0}, "more than 0"),
    "no spike": ({"train_iters": 5, "on_spike": "stop"}, "without spike_factor"),
    "factor": ({"train_iters": 5, "spike_factor": 1.0}, "more than 1"),
    "all dropped": ({"train_iters": 5, "hidden_dropout": 1.0}, "less than 1"),
    "nothing to measure": ({"eval_only": True}, "there is neither"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_refusals(name):
    fields, message = BAD[name]
    with pytest.raises(ConfigError, match=message):
        configs.make(NEEDED | fields)


@pytest.mark.parametrize(
    "data", [{"data": ["p"], "split": "80,20,0"}, {"data": ["p"], "split": "0,1,0"}, {"test_data": ["p"]}], ids=str
)
def test_evaluating_needs_neither_length_nor_rate_nor_what_to_train_on(data):
    configs.make({"load": "x", "eval_only": True} | data)
    with pytest.raises(ConfigError):
        configs.make({"load": "x", "eval_only": True} | data | {"split": "1,0,0"})
