"""Growing batches: sizes and lengths as megatron-core's calculators have them, where a version has them."""

import re
import warnings
from importlib import metadata

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from mconv.errors import ConfigError
from mconv.train.config import make
from mconv.train.config.length import batch_size, run_length, size_at, unshared

NEEDED = {"load": "x", "data": ["p"], "lr": 1.0}
SMALL, SHORT = st.integers(1, 12), st.integers(1, 400)


def calculator(name):
    """A class of megatron-core's; the test is skipped where the installed version has none of that name."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about what is not installed here, and moves within megatron-core
        from megatron.core import num_microbatches_calculator as module
    if not hasattr(module, name):
        pytest.skip(f"megatron-core {metadata.version('megatron-core')} has no {name}")
    return getattr(module, name)


def rampup(last, ramp, *, micro_batch_size=1, replicas=1):
    """megatron-core's calculator of a ramp, up to 0.17."""
    first, increment, samples = ramp
    return calculator("RampupBatchsizeNumMicroBatchesCalculator")(
        last, micro_batch_size, replicas, decrease_batch_size_if_needed=False, rank=-1, start_global_batch_size=first,
        batch_size_increment=increment, ramup_samples=samples,
    )  # fmt: skip


def at(theirs, consumed, check=False):
    theirs.update(consumed, consistency_check=check)
    return theirs.get_current_global_batch_size()


@st.composite
def ramps(draw, samples=SHORT):
    """(last, [first, increment, samples]) that a configuration may have."""
    first, increment = draw(SMALL), draw(SMALL)
    return first + increment * draw(SMALL), [first, increment, draw(samples)]


@given(ramps())
def test_every_size_is_megatron_cores(drawn):
    last, ramp = drawn
    theirs = rampup(last, ramp)
    found = [size_at(consumed, last=last, ramp=ramp) for consumed in range(ramp[2] + 20)]
    assert found == [at(theirs, consumed) for consumed in range(ramp[2] + 20)]
    assert found == sorted(found) and found[0] == ramp[0] and found[-1] == last


@given(ramps(samples=st.integers(1, 2**40)), st.integers(0, 2**41))
def test_sizes_of_long_runs_are_megatron_cores(drawn, consumed):
    """Where floats are short of whole numbers, ours are as short as theirs."""
    last, ramp = drawn
    assert size_at(consumed, last=last, ramp=ramp) == at(rampup(last, ramp), consumed)


def test_divided_in_whole_numbers_a_step_would_differ():
    """7 increments over 9 samples: the float 9 / (9 / 7) is short of 7, so the step at sample 9 takes 7 and not 8."""
    assert [size_at(consumed, last=8, ramp=[1, 1, 9]) for consumed in (8, 9, 10)] == [7, 7, 8]
    assert 1 + 9 * 7 // 9 == 8


@given(ramps(), st.integers(1, 600))
def test_a_run_has_as_many_steps_as_megatron_lm_counts(drawn, train_samples):
    """The loop of its `update_train_iters`, around megatron-core's calculator."""
    last, ramp = drawn
    assume(train_samples >= last)
    theirs, steps, consumed = rampup(last, ramp), 0, 0
    while consumed <= ramp[2] and consumed <= train_samples:
        consumed += at(theirs, consumed)
        steps += 1
    if train_samples > consumed:
        steps += (train_samples - consumed) // last
    fields = {"global_batch_size": last, "rampup_batch_size": ramp, "train_samples": train_samples}
    made = run_length(make(NEEDED | fields))
    assert (made.iterations, made.samples) == (steps, max(train_samples, consumed))


@given(ramps(), st.integers(1, 3), st.integers(1, 3))
def test_what_is_accepted_megatron_core_divides_among_the_replicas(drawn, micro_batch_size, replicas):
    last, ramp = drawn
    fields = {"global_batch_size": last, "rampup_batch_size": ramp, "train_samples": 10**6}
    config = make(NEEDED | fields | {"micro_batch_size": micro_batch_size})
    if list(unshared(config, replicas=replicas)):
        assert any(size % (micro_batch_size * replicas) for size in range(ramp[0], last + 1, ramp[1]))
    else:
        theirs = rampup(last, ramp, micro_batch_size=micro_batch_size, replicas=replicas)
        assert [at(theirs, consumed, check=True) for consumed in range(ramp[2] + 2)][-1] == last


@given(st.integers(1, 20), st.tuples(st.integers(0, 20), st.integers(0, 6), st.integers(0, 9)))
def test_what_megatron_core_refuses_is_refused(last, ramp):
    fields = {"global_batch_size": last, "rampup_batch_size": list(ramp), "train_samples": 100}
    try:
        theirs = rampup(last, ramp)
        assert [at(theirs, consumed) for consumed in range(10)]
    except (AssertionError, ZeroDivisionError):
        with pytest.raises(ConfigError, match="rampup_batch_size"):
            make(NEEDED | fields)
    else:
        make(NEEDED | fields)


@given(ramps(samples=SMALL))
def test_the_step_schedule_of_later_versions_says_the_same(drawn):
    """From 0.18 on megatron-core has steps at given samples in place of a ramp: those of ours, for whole spans."""
    last, (first, increment, span) = drawn
    count = (last - first) // increment
    ramp = [first, increment, span * count]
    schedule = " ".join(f"{k * span}:{first + k * increment}" for k in range(count + 1))
    theirs = calculator("StepBatchsizeNumMicroBatchesCalculator")(1, 1, False, -1, schedule)
    for consumed in range(ramp[2] + 20):
        assert size_at(consumed, last=last, ramp=ramp) == at(theirs, consumed)


@given(st.integers(1, 64), st.integers(1, 3), st.integers(1, 3))
def test_batches_of_one_size_are_divided_as_megatron_core_divides_them(size, micro_batch_size, replicas):
    constant = calculator("ConstantNumMicroBatchesCalculator")
    config = make(NEEDED | {"global_batch_size": size, "micro_batch_size": micro_batch_size, "train_iters": 1})
    assert batch_size(config, 0) == size
    if list(unshared(config, replicas=replicas)):
        with pytest.raises(AssertionError):
            constant(size, micro_batch_size, replicas, False, -1)
    else:
        assert at(constant(size, micro_batch_size, replicas, False, -1), 0, check=True) == size


def sizes(config):
    found, consumed = [], 0
    for _ in range(run_length(config).iterations):
        found.append(batch_size(config, consumed))
        consumed += found[-1]
    return found


def test_batches_grow():
    """2, 4, 6, 8 over 24 samples: a new size once a third of them is through."""
    config = make(NEEDED | {"rampup_batch_size": [2, 2, 24], "train_samples": 60})
    assert sizes(config) == [2, 2, 2, 2, 4, 4, 6, 6, 8, 8, 8, 8]
    assert sizes(make(NEEDED | {"rampup_batch_size": [2, 2, 24], "train_samples": 8})) == [2, 2, 2, 2, 4]


def test_batches_that_replicas_cannot_share_are_refused():
    config = make(NEEDED | {"rampup_batch_size": [2, 3, 24], "train_samples": 60})
    assert not list(unshared(config, replicas=1))
    said = "\n".join(unshared(config, replicas=4))
    assert re.search(r"(?s)first size 2 is not a multiple.*x 4 replicas.*increment 3 is not", said), said
