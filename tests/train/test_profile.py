"""Traces of some steps: which iterations and ranks they are of, and that profiling changes nothing of a run."""

import gzip
import json
import os
import signal

import jobs
import pytest
import torch

from mconv.errors import ConfigError
from mconv.train.config import make
from mconv.train.launch import stop
from mconv.train.loop import profile


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return jobs.fields(tmp_path_factory.mktemp("profile"), spec=jobs.SMALL, mock=True, train_iters=4)


def train(say=lambda line: None, **fields):
    from mconv.train.loop import train as run

    return run(make(fields), say=say)


def traces(folder):
    """The operations' names in each trace of a run, by file."""
    files = sorted((folder / "profile").iterdir())
    return {file.name: {e["name"] for e in json.loads(gzip.open(file).read())["traceEvents"]} for file in files}


def test_a_trace_has_its_iterations_and_the_signal_handler_lives_on(run, tmp_path):
    """Unlike Megatron-LM's --profile. SIGUSR2 among the profiled steps saves, and their trace is whole."""
    whole, said = train(**run)["losses"], []

    def hit(line):
        said.append(line)
        if "iteration        3/" in line:
            os.kill(os.getpid(), signal.SIGUSR2)

    with stop.listening():
        first = train(hit, **run, save=str(tmp_path), profile="2-4")
    assert first["stopped"] == "SIGUSR2, at iteration 3" and first["saved"]
    (name, operations), *others = traces(tmp_path).items()
    assert (name, others) == ("iterations_2-3.rank_0.pt.trace.json.gz", [])
    assert {"iteration 2", "iteration 3", "aten::mm"} <= operations and not {"iteration 1", "iteration 4"} & operations
    assert any(line.startswith("profile of iterations 2 to 3: ") for line in said)
    second = train(**run, save=str(tmp_path), profile="2-4")
    assert first["losses"] + second["losses"] == whole
    assert "iteration 4" in traces(tmp_path)["iterations_4-4.rank_0.pt.trace.json.gz"]


@pytest.mark.parametrize("asked, ranks", [([1, 3], {1, 3}), (None, {0})])
def test_the_ranks_that_are_asked_for(asked, ranks, run, tmp_path, monkeypatch):
    config = make({**run, "save": str(tmp_path), "profile": "2", "profile_ranks": asked})
    for rank in range(4):
        monkeypatch.setattr(profile.torch.distributed, "get_rank", lambda rank=rank: rank)
        with profile.profiling(config, say=print) as made:
            assert list(made.steps) == ([2] if rank in ranks else []) and made.tool.rank == rank


def test_a_trace_that_cannot_be_written_costs_no_step(run, tmp_path):
    (tmp_path / "profile").write_text("a file of that name")
    said = []
    assert len(train(said.append, **run, save=str(tmp_path), profile="1")["losses"]) == 4
    assert sum("was not written" in line for line in said) == 1


class Recorder:
    def __init__(self):
        self.calls = []

    def start(self):
        self.calls.append("start")

    def stop(self, first, last):
        self.calls.append((first, last))


@pytest.mark.parametrize(
    "steps, taken, calls",
    [
        (range(2, 4), range(1, 6), ["start", (2, 3)]),
        (range(2, 9), range(1, 4), ["start", (2, 3)]),  # the run stops early
        (range(2, 6), range(4, 9), ["start", (4, 5)]),  # it was resumed within
        (range(2, 4), range(5, 9), []),
        (range(0), range(1, 3), []),
    ],
)
def test_when_a_tool_records(steps, taken, calls):
    made = profile.Profile(steps=steps, tool=Recorder())
    for iteration in taken:
        with made.of(iteration):
            made.tool.calls.append(iteration)
    made.close()
    assert [call for call in made.tool.calls if not isinstance(call, int)] == calls
    started = made.tool.calls.index("start") if calls else None
    assert not calls or made.tool.calls[started + 1] == calls[1][0]  # before the step, not after it


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"profile": "12-10"}, "profile is '12-10'; it must be the first and the last iteration, such as 10-12"),
        ({"profile": "0-2"}, "such as 10-12"),
        ({"profile": "7"}, "begins after the last iteration, 4"),
        ({"profile": "1", "save": None}, "profile needs save"),
        ({"profile": "1", "profile_ranks": [-1]}, "profile_ranks"),
        ({"profile_ranks": [1]}, "profile_ranks is for profile"),
        ({"profile": "1", "eval_only": True}, "eval_only"),
    ],
)
def test_refusals(fields, message, run, tmp_path):
    with pytest.raises(ConfigError) as caught:
        make({**run, "save": str(tmp_path), **fields})
    assert message in str(caught.value)


def test_a_rank_that_there_is_not_is_refused_by_plan_and_run(run, tmp_path):
    from mconv.train.estimate.plan import plan

    fields = {**run, "save": str(tmp_path), "profile": "2", "profile_ranks": [0, 2]}
    for refused in (lambda: plan(make(fields), world=2), lambda: train(**fields)):
        with pytest.raises(ConfigError, match=r"profile_ranks is \[0, 2\], but the last of \d ranks is"):
            refused()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_nsys_without_a_gpu_is_refused(run):
    with pytest.raises(ConfigError, match="torch profiles a CPU too"):
        train(**run, profile="2", profile_with="nsys")
