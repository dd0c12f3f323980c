"""Checkpoints while training goes on, those that are kept, and going on from another than the last."""

import contextlib
import ctypes
import dataclasses
import errno
import fcntl
import json
import os
import re
import shutil
import signal
import time
from pathlib import Path

import jobs
import pytest

from mconv.errors import ConfigError, FormatError, MconvError


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The fields of a short run that every test shares."""
    return jobs.fields(tmp_path_factory.mktemp("saving"), spec=jobs.SMALL, mock=True, train_iters=6)


@pytest.fixture(scope="module")
def whole(run):
    """The run that was never stopped."""
    return jobs.train(**run)


def held(root):
    from mconv.train.checkpoints.folders import iterations

    return iterations(root)


# ---- while training goes on ------------------------------------------------------------------------------------------
def planted(monkeypatch, write):
    """Whoever writes a rank's file calls `write` with its path and its parts, and what wrote it before."""
    from mconv.convert.formats import distcp

    original = distcp.write_file
    monkeypatch.setattr(distcp, "write_file", lambda path, laid: write(path, laid, original))


def slow_writer(monkeypatch, gate, *, dies=False):
    """Files are written only when `gate` is there; or the writer fails at its first tensor."""

    def write(path, laid, original):
        while not gate.exists():
            time.sleep(0.01)
        original(path, [(part, tensor and "no tensor") for part, tensor in laid] if dies else laid)

    planted(monkeypatch, write)


def test_training_goes_on_while_files_are_written(run, whole, tmp_path, monkeypatch):
    """The writer waits for a step that comes after its save; the tracker waits for the writer."""
    from mconv.train.checkpoints import folders
    from mconv.train.loop import loop

    gate, seen = tmp_path / "gate", []

    def step(run, feed, **more):
        seen.append((run.iteration, run.saver.pending and run.saver.pending.iteration, folders.latest(tmp_path / "run")))
        if run.iteration == 3:
            gate.touch()
        return original(run, feed, **more)

    original = loop.step
    monkeypatch.setattr(loop, "step", step)
    slow_writer(monkeypatch, gate)
    result = jobs.train(**run, save=str(tmp_path / "run"), async_save=True, save_interval=2, exit_after=5)
    assert seen == [(0, None, None), (1, None, None), (2, 2, None), (3, 2, None), (4, 4, 2)]
    assert result["losses"] == whole["losses"][:5]
    assert folders.latest(tmp_path / "run") == 5 and held(tmp_path / "run") == [2, 4, 5]
    assert not list((tmp_path / "run").glob(".*"))
    again = jobs.train(**run, save=str(tmp_path / "run"))
    assert again["losses"] == whole["losses"][5:]


def test_what_is_written_is_the_moment_of_the_save(run, whole, tmp_path, monkeypatch):
    """The weights move on before a byte is written, and the checkpoint has those of its iteration."""
    from mconv.train.loop import loop

    gate, original = tmp_path / "gate", loop.step

    def step(run, feed, **more):
        made = original(run, feed, **more)
        if run.iteration == 5:
            gate.touch()
        return made

    monkeypatch.setattr(loop, "step", step)
    slow_writer(monkeypatch, gate)
    jobs.train(**run, save=str(tmp_path / "run"), async_save=True, save_interval=3, exit_after=5)
    resumed = jobs.train(**run, save=str(tmp_path / "run"), iteration=3, overwrite=True)
    assert resumed["losses"] == whole["losses"][3:]


def test_a_writers_error_is_raised_and_the_old_state_stays(run, whole, tmp_path, monkeypatch):
    """At once; in the background it is tried again in the foreground, in vain."""
    from mconv.train.checkpoints import folders

    save = {"save": str(tmp_path / "run")}
    jobs.train(**run, **save, exit_after=2)
    (tmp_path / "gate").touch()
    with monkeypatch.context() as patch:
        slow_writer(patch, tmp_path / "gate", dies=True)
        for background, lost in ((True, "[456]"), (False, "4")):
            said = rf"iteration {lost} was not saved: rank 0 on .*__0_0.distcp: .*; the last checkpoint is 2"
            with pytest.raises(MconvError, match=said):
                jobs.train(**run, **save, async_save=background, save_interval=4)
    assert folders.latest(tmp_path / "run") == 2 and held(tmp_path / "run") == [2]
    assert not list((tmp_path / "run").glob(".*"))
    assert jobs.train(**run, **save)["losses"] == whole["losses"][2:]


def killed_writer(monkeypatch, *, at):
    """Whoever writes a file of iteration `at` is killed before its end, as when memory runs out."""

    def write(path, laid, original):
        if f"iter_{at:07d}" in str(path):
            path.write_bytes(b"a half")
            os.kill(os.getpid(), signal.SIGKILL)
        original(path, laid)

    planted(monkeypatch, write)


def test_a_writer_that_is_killed_costs_its_checkpoint_alone(run, whole, tmp_path, monkeypatch):
    """The step that notices saves anew and waits for it; nothing that is half a checkpoint is left."""
    from mconv.train.config import make
    from mconv.train.loop import train

    killed_writer(monkeypatch, at=2)
    said = []
    result = train(make(run | {"save": str(tmp_path), "async_save": True, "save_interval": 2}), say=said.append)
    assert result["losses"] == whole["losses"]
    lost = "iteration 2 was not saved: rank 0 on .*: its writer was killed .*; there is no checkpoint yet"
    assert [line for line in said if re.search(lost, line)]
    assert held(tmp_path) in ([3, 4, 6], [4, 6])
    assert not list(tmp_path.glob(".*"))


def test_a_writer_starts_no_process_and_does_not_outlive_its_rank(run, tmp_path, monkeypatch):
    """There is nobody else to be killed: all that a save starts is the one child, and the kernel ends that with us."""

    def write(path, laid, original):
        status = Path("/proc/self/status").read_text()
        asked = ctypes.c_int()
        ctypes.CDLL(None).prctl(2, ctypes.byref(asked), 0, 0, 0)  # PR_GET_PDEATHSIG
        (tmp_path / "seen").write_text(f"{os.getppid()} {asked.value} {Path('/proc/self/oom_score_adj').read_text()}")
        original(path, laid)
        children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
        assert not children and "Threads:\t1\n" in status

    before = children_of(os.getpid())
    planted(monkeypatch, write)
    jobs.train(**run, save=str(tmp_path), async_save=True, exit_after=1)
    assert (tmp_path / "seen").read_text().split() == [str(os.getpid()), str(int(signal.SIGKILL)), "1000"]
    assert children_of(os.getpid()) == before


def children_of(pid):
    found = set()
    for task in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(FileNotFoundError):  # a thread that has ended meanwhile
            found |= set((task / "children").read_text().split())
    return found


def test_a_writer_that_stands_still_is_not_waited_for_for_ever(run, tmp_path, monkeypatch):
    """It is a file that does not grow which is given up, not one that takes long."""
    from mconv.train.checkpoints import writing

    slow_writer(monkeypatch, tmp_path / "never")
    monkeypatch.setattr(writing, "timeout_minutes", lambda: 1 / 600)
    monkeypatch.setattr("mconv.train.megatron.collectives.MOMENT", 0.02)
    with pytest.raises(MconvError, match=r"iteration 1 was not saved: .*its writer has written nothing for"):
        jobs.train(**run, save=str(tmp_path / "run"), exit_after=1)


def test_all_ranks_must_have_written(run, world, tmp_path):
    """Three ranks are done at once, another waits for a later step: the tracker waits for it."""
    seen = world.run(jobs.train_with_one_slow_writer, folder=str(tmp_path), **run, tp=2, save=str(tmp_path / "run"))
    assert all(ours == seen[0] for ours in seen)
    assert seen[0][:5] == [(0, None), (1, None), (2, None), (3, None), (4, 2)]


LOSSES = {
    "disk full": (1, {}, "iteration 2 was not saved: no room left on .*: rank 1 on .*No space left on device"),
    "killed": (1, {"async_save": True}, None),
    "disk full at the end": (0, {}, "iteration 2 was not saved: .*No space left on device; there is no checkpoint"),
    "another folder": (
        3,
        {},
        "save .* must be one folder that all ranks share: rank 3: .* does not see what rank 0 writes",
    ),
}
"""What goes wrong -> on which rank, how the run saves, what all ranks raise; None: they all go on."""


@pytest.mark.parametrize("how", LOSSES)
def test_what_one_rank_cannot_save_all_ranks_learn(how, run, whole, world, tmp_path):
    """At once: none of them is left in a collective, and nothing is left that looks whole."""
    rank, more, message = LOSSES[how]
    fields = run | {"tp": 2, "save": str(tmp_path / "run"), "save_interval": 2, "exit_after": 3, **more}
    ended = world.run(jobs.train_losing, rank=rank, at=2, how=how, **fields, timeout=200)
    if message:
        assert all(re.search(message, str(text)) for text, _ in ended) and not held(tmp_path / "run")
    else:
        assert all(losses == pytest.approx(whole["losses"][:3], abs=1e-5) for losses, _ in ended)
        assert re.search("iteration 2 was not saved: rank 1 on .*: its writer was killed", "\n".join(ended[0][1]))
        assert held(tmp_path / "run") == [3]
    assert not list((tmp_path / "run").glob(".*"))


# ---- whose folder it is ----------------------------------------------------------------------------------------------
def test_a_folder_is_one_runs_at_a_time(run, tmp_path):
    """Refused before anything is written to it, with who holds it."""
    jobs.train(**run, save=str(tmp_path), exit_after=1)
    log = (tmp_path / "train.jsonl").read_text()
    with (tmp_path / "run.lock").open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(ConfigError, match=rf"another run is at work there \(on .*, process {os.getpid()}, since"):
            jobs.train(**run, save=str(tmp_path))
    assert (tmp_path / "train.jsonl").read_text() == log
    assert jobs.train(**run, save=str(tmp_path), exit_after=2)["iteration"] == 2


def test_without_locks_the_run_that_began_last_has_the_folder(run, tmp_path, monkeypatch):
    """The other one finds that out before it gives a checkpoint its name."""
    from mconv.train.loop import loop

    def no_locks(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    def step(run, feed, **more):
        if run.iteration == 3:
            (tmp_path / "run.lock").write_text('{"run": "another", "host": "node7", "pid": 1, "since": "now"}')
        return original(run, feed, **more)

    original = loop.step
    monkeypatch.setattr(fcntl, "flock", no_locks)
    monkeypatch.setattr(loop, "step", step)
    with pytest.raises(MconvError, match=r"iteration 4 was not saved: .*taken over by another run \(on node7, process 1"):
        jobs.train(**run, save=str(tmp_path), save_interval=2)
    assert held(tmp_path) == [2]


def test_what_another_run_has_saved_since_the_start_is_not_replaced(run, saved):
    from mconv.train.checkpoints import begin
    from mconv.train.config import make

    config = make(run | {"save": str(saved)})
    begun = begin.where(config)
    begin.confirm(config, begun)
    with pytest.raises(ConfigError, match="another run has saved there since"):
        begin.confirm(config, dataclasses.replace(begun, saved=4))


def test_a_folder_that_cannot_be_written_to_is_refused_before_the_first_step(run, tmp_path):
    (tmp_path / "run.lock").mkdir()  # root may write everywhere, but not this
    with pytest.raises(ConfigError, match="cannot be written to: Is a directory"):
        jobs.train(**run, save=str(tmp_path))
    assert not (tmp_path / "train.jsonl").exists()


# ---- which are kept --------------------------------------------------------------------------------------------------
def test_the_newest_and_every_so_manyth_are_kept(run, tmp_path):
    """And one that another program wrote, of which nothing says that it may go."""
    root = tmp_path / "run"
    jobs.train(**run, save=str(root), exit_after=3)
    strange = root / "iter_0000001"
    strange.mkdir()
    (strange / "common.pt").write_bytes(b"another program's")
    jobs.train(**run, save=str(root), save_interval=1, keep_last=2, keep_every=3)
    assert held(root) == [1, 3, 5, 6] and (strange / "common.pt").exists()


def test_another_programs_checkpoint_is_not_replaced(run, tmp_path):
    (tmp_path / "iter_0000002").mkdir()
    with pytest.raises(ConfigError, match="iteration 2, which mconv train did not write"):
        jobs.train(**run, save=str(tmp_path), save_interval=2)


def test_what_another_jobs_tracker_names_is_kept(run, tmp_path, monkeypatch):
    """Somebody points the tracker back while we train: that checkpoint is not ours to remove."""
    from mconv.train.checkpoints import folders
    from mconv.train.loop import loop

    original = loop.step

    def step(run, feed, **more):
        if run.iteration == 3:
            folders.point(tmp_path, 2)
        return original(run, feed, **more)

    monkeypatch.setattr(loop, "step", step)
    jobs.train(**run, save=str(tmp_path), save_interval=1, keep_last=2)
    assert held(tmp_path) == [2, 5, 6]


def test_nothing_is_removed_before_the_new_one_is_whole(run, tmp_path, monkeypatch):
    from mconv.train.checkpoints import folders

    jobs.train(**run, save=str(tmp_path), exit_after=2)
    monkeypatch.setattr(folders, "move_tracker", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        jobs.train(**run, save=str(tmp_path), exit_after=3, keep_last=1)
    assert folders.latest(tmp_path) == 2 and 2 in held(tmp_path)


# ---- another iteration -----------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def saved(run, tmp_path_factory):
    """A run with checkpoints at 2, 4 and 6."""
    root = tmp_path_factory.mktemp("saved") / "first"
    jobs.train(**run, save=str(root), save_interval=2)
    return root


def test_an_earlier_iteration_takes_a_folder_of_its_own(run, whole, saved, tmp_path):
    """Refused in place; elsewhere it goes on, and so does the same command after a stop."""
    with pytest.raises(ConfigError, match="also holds iterations 4, 6, which a run from 2 would replace"):
        jobs.train(**run, save=str(saved), iteration=2)
    branch = run | {"load": str(saved), "resume": True, "iteration": 2, "save": str(tmp_path / "second")}
    first, second = jobs.train(**branch, exit_after=3), jobs.train(**branch)
    assert first["losses"] + second["losses"] == whole["losses"][2:]
    assert held(saved) == [2, 4, 6] and held(tmp_path / "second") == [3, 6]


def test_an_earlier_iteration_in_place_replaces_the_later_ones(run, whole, saved, tmp_path):
    root = tmp_path / "copy"
    shutil.copytree(saved, root)
    lower = run | {"lr": 5e-3, "save": str(root), "save_interval": 2}
    jobs.train(**lower, iteration=2, overwrite=True, exit_after=3, keep_last=2)  # the newest of its own past: 2 and 3
    again = jobs.train(**lower)  # without the flags: the run from 2, not the old one
    assert again["iteration"] == 6 and len(again["losses"]) == 3
    assert held(root) == [2, 3, 4, 6]
    log = [json.loads(line) for line in (root / "train.jsonl").read_text().splitlines()]
    assert [line["iteration"] for line in log] == [1, 2, 3, 4, 5, 6]
    losses = [line["loss"] for line in log]
    assert losses[:3] == whole["losses"][:3] and losses[3] != whole["losses"][3]  # the new rate counts, from there on


def test_a_lost_tracker_does_not_begin_the_run_anew(run, whole, saved, tmp_path):
    root = tmp_path / "copy"
    shutil.copytree(saved, root)
    (root / "latest_checkpointed_iteration.txt").unlink()
    with pytest.raises(ConfigError, match="holds iterations 2, 4, 6, but its tracker names none"):
        jobs.train(**run, save=str(root))
    shutil.rmtree(root / "iter_0000006")
    assert jobs.train(**run, save=str(root), iteration=4)["losses"] == whole["losses"][4:]


@pytest.mark.parametrize(
    "part", ["decoder.layers.mlp.linear_fc1.weight", "optimizer.state.exp_avg_sq.output_layer.weight"]
)
def test_a_byte_that_has_changed_is_seen(part, run, saved, tmp_path):
    """Of weights or of the optimizer: torch's loader would take it, and the run would go on from another state."""
    from mconv.convert.formats import torch_dist

    root = tmp_path / "copy"
    shutil.copytree(saved, root)
    folder = root / "iter_0000006"
    tensors = torch_dist.open_folder(folder)[0] | torch_dist.open_training(folder)[0]
    place = tensors[part].chunks[0].locate(part, tensors[part].dtype)
    with place.path.open("r+b") as file:
        file.seek(place.offset + 8)
        file.write(bytes(8))
    with pytest.raises(FormatError, match=rf"{place.path}: .* is not what was written: .*--iteration N"):
        jobs.train(**run | {"train_iters": 8}, save=str(root))


def test_an_iteration_that_is_not_there_is_refused(run, saved):
    with pytest.raises(FormatError, match="has no iteration 3; it has 2, 4, 6"):
        jobs.train(**run, save=str(saved), iteration=3)


RULES = {
    "async_save needs save": {"async_save": True},
    "keep_last needs save": {"keep_last": 1},
    "keep_every needs keep_last": {"keep_every": 2},
    "overwrite needs iteration": {"overwrite": True},
    "resume: hf holds weights": {"resume": True},
}


@pytest.mark.parametrize("message", RULES)
def test_refusals(message, run):
    with pytest.raises((ConfigError, FormatError), match=message):
        jobs.train(**run | RULES[message])
