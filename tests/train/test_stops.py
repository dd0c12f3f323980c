"""Stopping well: whatever asks, all ranks agree on one step, save, and the next run goes on as if none had stopped."""

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jobs
import pytest

from mconv.errors import ConfigError, MconvError
from mconv.train.config import make
from mconv.train.launch import chain, ranks, stop


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return jobs.fields(tmp_path_factory.mktemp("stops"), spec=jobs.SMALL, train_iters=6)


@pytest.fixture(scope="module")
def whole(run):
    """The losses of the run that nothing stops."""
    return jobs.train(**run)["losses"]


def at(iteration, do):
    """A `say` that does something when the line of an iteration is printed."""
    return lambda line: do() if f"iteration {iteration:8d}/" in line else None


def train(say=lambda line: None, **fields):
    from mconv.train.loop import train as run

    return run(make(fields), say=say)


def kill(number):
    return lambda: os.kill(os.getpid(), number)


ASKS = {
    "SIGTERM": (kill(signal.SIGTERM), {}, "SIGTERM, at iteration 3"),
    "SIGUSR2": (kill(signal.SIGUSR2), {}, "SIGUSR2, at iteration 3"),
    "SIGINT": (kill(signal.SIGINT), {}, "SIGINT, at iteration 3"),
    "exit_interval": (None, {"exit_interval": 3}, "exit_interval, at iteration 3"),
    "exit trigger": ("exit", {}, "the exit trigger, at iteration 3"),
    "time": ("an hour", {"exit_duration_in_mins": 60.0}, "exit_duration_in_mins, at iteration 3"),
}


@pytest.mark.parametrize("name", ASKS)
def test_it_saves_and_the_next_goes_on(name, run, whole, tmp_path, monkeypatch):
    what, fields, why = ASKS[name]
    later = time.monotonic() + 3601
    acts = {"exit": lambda: (tmp_path / "triggers" / "exit").touch(), None: lambda: None,
            "an hour": lambda: monkeypatch.setattr(stop.time, "monotonic", lambda: later)}  # fmt: skip
    act = acts.get(what, what)
    with stop.listening():
        first = train(at(3, act), **run, **fields, save=str(tmp_path))
    assert first["stopped"] == why and first["iteration"] == len(first["losses"]) == 3
    assert first["saved"] == str(tmp_path / "iter_0000003")
    assert not list((tmp_path / "triggers").iterdir())
    second = train(**run, save=str(tmp_path))
    assert first["losses"] + second["losses"] == whole and second["stopped"] is None


def test_without_listening_a_signal_is_what_it_was(run, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        train(at(1, kill(signal.SIGINT)), **run, save=str(tmp_path))
    with pytest.raises(KeyboardInterrupt), stop.listening():
        train(at(1, lambda: [kill(signal.SIGINT)() for _ in range(2)]), **run, save=str(tmp_path))
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_second_sigterm_ends_the_command_but_not_a_rank():
    """Slurm may send its ranks several."""
    with stop.listening():
        for _ in range(3):
            kill(signal.SIGTERM)()
    with pytest.raises(SystemExit) as ended, stop.listening(alone=True):
        for _ in range(2):
            kill(signal.SIGTERM)()
    assert ended.value.code == 143


def test_a_save_trigger_saves_and_goes_on(run, whole, tmp_path):
    (tmp_path / "asked").mkdir()
    (tmp_path / "asked" / "save").touch()  # set while the job was queued: there is nothing to save before the first step
    fields = {**run, "save": str(tmp_path), "trigger_dir": str(tmp_path / "asked")}
    result = train(**fields)
    assert result["losses"] == whole and result["stopped"] is None
    assert sorted(path.name for path in tmp_path.glob("iter_*")) == ["iter_0000001", "iter_0000006"]
    assert not list((tmp_path / "asked").iterdir())


def test_an_exit_trigger_of_the_queue_is_honoured_once(run, whole, tmp_path):
    (tmp_path / "triggers").mkdir()
    (tmp_path / "triggers" / "exit").touch()
    first = train(**run, save=str(tmp_path))
    assert (first["iteration"], first["saved"], first["stopped"]) == (0, None, "the exit trigger, at iteration 0")
    assert train(**run, save=str(tmp_path))["losses"] == whole


def test_a_run_whose_time_is_over_before_its_first_step_fails(run, tmp_path):
    """It would stop in order, and so would each job of the queue after it."""
    with pytest.raises(ConfigError, match="exit_duration_in_mins was over before the first step"):
        train(**run, save=str(tmp_path), exit_duration_in_mins=1e-4)


def test_a_trigger_that_cannot_be_removed_is_obeyed_once(run, whole, tmp_path):
    """A folder of that name, as a slip of the hand makes it: one save, a line, and the run goes on."""
    (tmp_path / "triggers" / "save").mkdir(parents=True)
    said = []
    result = train(said.append, **run, save=str(tmp_path))
    assert result["losses"] == whole
    assert sum("triggers/save cannot be removed" in line for line in said) == 1
    assert sorted(path.name for path in tmp_path.glob("iter_*")) == ["iter_0000001", "iter_0000006"]


def test_a_trigger_that_comes_during_the_save_stays(run, tmp_path, monkeypatch):
    from mconv.train.loop import loop

    saved = loop.save
    monkeypatch.setattr(loop, "save", lambda *a, **k: (saved(*a, **k), (tmp_path / "triggers" / "exit").touch()))
    train(**run, save=str(tmp_path), exit_after=2)
    assert (tmp_path / "triggers" / "exit").exists()


# ---- ranks -----------------------------------------------------------------------------------------------------------
def test_all_ranks_agree_on_one_step(run, world, tmp_path):
    """A signal to rank 2, which is neither the first nor the last, in the midst of a step of its own."""
    fields = {**run, "save": str(tmp_path), "tp": 2, "pp": 2}
    results = world.run(jobs.train_hit, **fields, rank=2, at=3)
    assert {(result["iteration"], result["stopped"]) for result in results} == {(3, "SIGUSR2, at iteration 3")}


def test_a_rank_that_keeps_it_to_itself_would_be_seen(world):
    """The planted fault: each rank goes by what it knows itself. Rank 2 would save alone, and all would hang."""
    number = stop.NUMBERS["SIGUSR2"]
    assert world.run(jobs.what_is_asked, rank=2, alone=False) == [number] * 4
    assert world.run(jobs.what_is_asked, rank=2, alone=True) == [0, 0, number, 0]


# ---- time ------------------------------------------------------------------------------------------------------------
def test_slurm_says_when_it_will_end_the_job(monkeypatch, tmp_path):
    for name in ("SLURM_JOB_END_TIME", "SLURM_JOB_ID"):
        monkeypatch.delenv(name, raising=False)
    assert stop.slurm_limit() is None
    stub(tmp_path / "scontrol", 'echo "   StartTime=2026-11-25T10:00:00 EndTime=2026-11-25T12:00:00 Deadline=N/A $*"')
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    assert time.localtime(stop.slurm_limit())[:5] == (2026, 11, 25, 12, 0)
    stub(tmp_path / "scontrol", 'echo "EndTime=Unknown"')
    assert stop.slurm_limit() is None
    monkeypatch.setenv("SLURM_JOB_END_TIME", "1800000000")
    assert stop.slurm_limit() == 1.8e9


@pytest.mark.parametrize(("minutes", "before"), [(60, 5), (4, 2), (None, None)])
def test_how_long_before_the_limit(minutes, before, monkeypatch, tmp_path):
    """Five minutes before, but never more than half of the time that there is; not at all if told so."""
    monkeypatch.setenv("SLURM_JOB_END_TIME", str(int(time.time() + 60 * (minutes or 60))))
    config = make({"load": "x", "data": ["p"], "train_iters": 1, "lr": 1.0, "save": str(tmp_path),
                   **({} if minutes else {"stop_before_limit": 0.0})})  # fmt: skip
    now = time.monotonic()
    ends = stop.stop_conditions(config, rank=0, began=now).ends
    assert (list(ends) == [5] and abs(ends[5] - (now + 60 * (minutes - before))) < 2) if minutes else not ends
    assert not stop.stop_conditions(config, rank=1, began=now).ends


def test_a_clock_that_is_set_back_moves_no_end(monkeypatch, tmp_path):
    """An hour back, by NTP, in mid-run: the time that the job was given runs out all the same."""
    config = make({"load": "x", "data": ["p"], "train_iters": 1, "lr": 1.0, "save": str(tmp_path),
                   "exit_duration_in_mins": 10.0})  # fmt: skip
    halts = stop.stop_conditions(config, rank=0, began=time.monotonic())
    now, past = time.time(), time.monotonic() + 601
    monkeypatch.setattr(stop.time, "time", lambda: now - 3600)
    assert not list(halts._local(1, first=False))
    monkeypatch.setattr(stop.time, "monotonic", lambda: past)
    assert list(halts._local(1, first=False)) == [stop.NUMBERS["exit_duration_in_mins"]]


@pytest.mark.parametrize(
    ("field", "value"), [("cancel_job", "my-job"), ("exit_interval", 0), ("exit_duration_in_mins", 0.0)]
)
def test_refusals(field, value):
    with pytest.raises(ConfigError, match=field):
        make({"load": "x", "data": ["p"], "train_iters": 1, "lr": 1.0, "save": "s", field: value})


# ---- the chain -------------------------------------------------------------------------------------------------------
def stub(file, script):
    file.write_text(f"#!/bin/sh\n{script}\n")
    file.chmod(0o755)


def test_a_failing_first_step_cancels_the_chain_once(run, tmp_path, monkeypatch, capsys):
    """Through the command: by job id alone, and only where no step was taken."""
    from mconv.cli import app

    stub(tmp_path / "scancel", f'echo "$*" >> {tmp_path}/cancelled')
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    fields = {**run, "cancel_job": "78,79_1", "on_first_failure": f'echo "$MCONV_ERROR" > {tmp_path}/told'}
    (tmp_path / "run.json").write_text(json.dumps(fields))
    assert app.run(["train", str(tmp_path / "run.json"), "--keep-every", "3"]) == 2  # no configuration at all
    assert "keep_last" in (tmp_path / "told").read_text() and (tmp_path / "cancelled").read_text() == "78 79_1\n"
    (tmp_path / "cancelled").unlink()
    assert app.run(["train", str(tmp_path / "run.json"), "--seq-length", "4096"]) == 2
    assert (tmp_path / "cancelled").read_text() == "78 79_1\n"
    assert "positions" in (tmp_path / "told").read_text() and "--cancel-job 78,79_1: done" in capsys.readouterr().err
    assert app.run(["train", str(tmp_path / "run.json"), "--lr", "1e30", "--clip-grad", "0"]) == 1  # step 2 is not finite
    assert (tmp_path / "cancelled").read_text() == "78 79_1\n"


def test_of_ranks_that_fail_together_one_tells(tmp_path, monkeypatch):
    queue = chain.queue_of({"save": str(tmp_path / "run"), "on_first_failure": f"echo told >> {tmp_path}/told; false"})
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    said = []
    for rank in "2013":
        monkeypatch.setenv("RANK", rank)
        with pytest.raises(MconvError) as caught, chain.guarded(queue):
            raise MconvError("no data")
        said.append(str(caught.value))
    assert (tmp_path / "told").read_text() == "told\n"
    assert said == ["no data\nno step was taken; on_first_failure: exit code 1: ", *["no data"] * 3]


@pytest.mark.parametrize(
    ("restarts", "shared", "warned"),
    [("3", "True", True), ("3", "False", False), ("0", "True", False), (None, None, False)],
)
def test_restarts_that_could_not_work_are_warned_of(restarts, shared, warned, monkeypatch):
    for name, value in {"TORCHELASTIC_MAX_RESTARTS": restarts, "TORCHELASTIC_USE_AGENT_STORE": shared}.items():
        monkeypatch.setenv(name, value) if value else monkeypatch.delenv(name, raising=False)
    assert bool(ranks.doomed_restarts()) == warned


# ---- the launcher ----------------------------------------------------------------------------------------------------
def descendants(parent):
    """Every living descendant of a process, with its command line."""
    found = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            words = stat.read_text().rsplit(")", 1)[1].split()
            if int(words[1]) == parent and words[0] != "Z":
                pid = int(stat.parent.name)
                found |= {pid: (stat.parent / "cmdline").read_text(), **descendants(pid)}
    return found


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="reads /proc")
@pytest.mark.once
def test_signals_to_the_launchers_processes(run, tmp_path):
    """For real: SIGUSR2 to the launcher, to its agent and to a rank at once; every process lives on to save, exit 0."""
    (tmp_path / "run.json").write_text(json.dumps(run | {"train_iters": 100000, "save": str(tmp_path / "run")}))
    command = [sys.executable, "-m", "mconv", "train", str(tmp_path / "run.json"), "--nproc-per-node", "2"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    left = {}
    try:
        for line in process.stdout:
            if "iteration        2/" in line:
                break
        left = descendants(process.pid)
        agent = next(pid for pid, words in left.items() if "launch.agent" in words)
        ranks = list(descendants(agent))  # forked from it
        assert len(ranks) == 2
        for pid in (agent, ranks[1], process.pid):
            os.kill(pid, signal.SIGUSR2)
        rest = process.stdout.read()
        assert process.wait(timeout=60) == 0, rest
        assert "stopped by SIGUSR2, at iteration" in rest and "saved " in rest
        assert re.search(r"SIGUSR2: (finishing step|saving iteration) \d+, then", rest), rest
        assert not descendants(process.pid) and (tmp_path / "run" / "latest_checkpointed_iteration.txt").is_file()
    finally:
        for pid in [process.pid, *left]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.wait()
        process.stdout.close()


@pytest.mark.big
def test_two_nodes_as_srun_starts_them(run, tmp_path):
    """Two ranks without a launcher, as `srun` starts one a node; SIGUSR2 to the second, as Slurm may send it."""
    (tmp_path / "run.json").write_text(json.dumps(run | {"train_iters": 100000, "save": str(tmp_path / "run")}))
    joined = {"WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    command = [sys.executable, "-m", "mconv", "train", str(tmp_path / "run.json")]
    nodes = [
        subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=os.environ | joined | {"RANK": rank}
        )
        for rank in "01"
    ]
    try:
        for line in nodes[0].stdout:
            if "iteration        2/" in line:
                nodes[1].send_signal(signal.SIGUSR2)
                break
        said = [node.communicate(timeout=120)[0] for node in nodes]
        assert [node.returncode for node in nodes] == [0, 0], said
        assert (tmp_path / "run" / "latest_checkpointed_iteration.txt").is_file() and "iteration" not in said[1]
    finally:
        for node in nodes:
            node.kill()
            node.wait()
            node.stdout.close()


def free_port():
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        return held.getsockname()[1]
