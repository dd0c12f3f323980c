"""Room for checkpoints: counted before the first step, reported when it runs out; and work that nothing would save."""

import errno
import os
import re
import subprocess
from types import SimpleNamespace

import jobs
import pytest

from mconv.errors import ConfigError, DiskFull, MconvError
from mconv.train.checkpoints import disk, folders
from mconv.train.config import make
from mconv.train.estimate import storage
from mconv.train.estimate.plan import plan
from mconv.train.loop.unsaved import unsaved

pytestmark = pytest.mark.once


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return jobs.fields(tmp_path_factory.mktemp("room"), spec=jobs.SMALL, train_iters=6)


@pytest.fixture(scope="module")
def whole(run):
    """The losses of the run that nothing stops."""
    return jobs.train(**run)["losses"]


@pytest.fixture
def mounted(tmp_path):
    """A disk of its own of 3 MB."""
    (folder := tmp_path / "disk").mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "none", str(folder)], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"a disk cannot be mounted here: {done.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def train(said=None, **fields):
    from mconv.train.loop import train as run

    return run(make(fields), say=(lambda line: None) if said is None else said)


def fill(folder, *, leave):
    """Take a disk's room but for some bytes, with a file that a test may remove."""
    usage = os.statvfs(folder)
    (folder / "filler").write_bytes(bytes(usage.f_bavail * usage.f_frsize - leave))


def held(root):
    return folders.iterations(root)


# ---- counted ---------------------------------------------------------------------------------------------------------
KINDS = {
    "fp32": ({}, 12),
    "distributed": ({"distributed_optimizer": True}, 16),
    "sgd": ({"optimizer": "sgd"}, 8),
    "bf16": ({"bf16": True, "keep_last": 1, "save_interval": 1}, 14),
    "lora": ({"lora_rank": 4}, 12),
    "freeze": ({"freeze": ["embedding"]}, None),
}
"""Fields of a run -> bytes for each parameter that is trained; None where others are saved, too."""


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_counted_is_what_is_written(kind, run, tmp_path, monkeypatch):
    fields, each = KINDS[kind]
    counted = {}
    original = storage.checkpoint_bytes

    def noted(*args, **options):
        counted.update(options, size=original(*args, **options))
        return counted["size"]

    monkeypatch.setattr(storage, "checkpoint_bytes", noted)
    saved = train(**run, **fields, save=str(tmp_path), exit_after=1)["saved"]
    size = counted["size"]
    assert plan(make({**run, **fields, "save": "s"})).checkpoint == size, "a plan counts the same from shapes alone"
    exact = size - storage.OVERHEAD
    assert each is None or exact == each * counted["trained"]
    written = disk.nbytes(folders.folder_of(tmp_path, 1))
    assert exact < written < exact + 1.5 * storage.OVERHEAD and saved.endswith("iter_0000001")


GB = 10**9
PLANS = {
    "all": ({}, range(10, 51, 10), 5 * GB, None),
    "all but one": ({}, range(10, 51, 10), 5 * GB - 1, 50),
    "not even one": ({}, [10], GB - 1, 10),
    "the newest, and one beside": ({"keep": storage.Keep(1)}, range(10, 1001, 10), 2 * GB, None),
    "the newest, and none beside": ({"keep": storage.Keep(1)}, range(10, 1001, 10), 2 * GB - 1, 20),
    "some for good": ({"keep": storage.Keep(1, 30)}, range(10, 101, 10), 4 * GB - 1, 80),
    "old ones go": ({"keep": storage.Keep(1), "present": {1: GB, 2: GB}}, range(10, 51, 10), GB, None),
    "old ones stay": ({"present": {1: GB, 2: GB}}, range(10, 51, 10), GB, 20),
    "one is replaced": ({"present": {10: GB}}, [10, 20], GB, None),
    "exports": ({"keep": storage.Keep(1), "export": lambda i: GB if i % 20 == 0 else 0}, range(10, 101, 10), 4 * GB, 70),
}
"""What there is and what is kept, the iterations to save, the free bytes -> the first one without room."""


@pytest.mark.parametrize("name", PLANS)
def test_when_the_disk_is_full(name):
    more, todo, free, full = PLANS[name]
    assert disk.DiskSpace(size=GB, free=free, **{"keep": storage.Keep(), **more}).full_at(todo) == full


def test_which_iterations_are_saved():
    config = {"load": "x", "data": ["p"], "train_iters": 25, "lr": 1.0, "save": "s"}
    saves = lambda at=0, **more: disk.saves(make({**config, **more}), iteration=at, iterations=25)  # noqa: E731
    assert saves() == [25] and saves(save_interval=10) == [10, 20, 25] and saves(10, save_interval=10) == [20, 25]
    assert saves(save_interval=5, exit_after=12) == [5, 10, 12] and saves(25, save_interval=10) == []


# ---- before the first step -------------------------------------------------------------------------------------------
def test_a_disk_without_room_for_one_is_refused_before_the_first_step(run, tmp_path, monkeypatch):
    """With the numbers; and the refused run leaves nothing, not even its folders."""
    monkeypatch.setattr(disk.shutil, "disk_usage", lambda _: SimpleNamespace(free=100_000))
    fields = {**run, "save": str(tmp_path / "a" / "run"), "tensorboard_dir": str(tmp_path / "b"), "train_iters": 1}
    said = rf"no room for a checkpoint: {tmp_path} has 100 kB free, and each checkpoint takes about \d+ kB.*--allow-full-"
    with pytest.raises(ConfigError, match=said):
        train(**fields)
    assert not list(tmp_path.iterdir())
    lines = []
    del fields["tensorboard_dir"]
    assert train(lines.append, **fields, allow_full_disk=True)["iteration"] == 1
    assert [line for line in lines if line.startswith("warning: no room for a checkpoint")]


def test_a_disk_that_will_be_full_is_said_before_the_first_step(run, tmp_path, monkeypatch):
    lines = []
    monkeypatch.setattr(disk.shutil, "disk_usage", lambda _: SimpleNamespace(free=1_500_000))
    train(lines.append, **run, save=str(tmp_path), save_interval=1, exit_after=1)
    assert not [line for line in lines if "the disk of" in line], "one checkpoint until the end"
    with pytest.raises(StopIteration):
        train(until("warning: the disk of --save", lines), **run, save=str(tmp_path), save_interval=1)
    assert re.search(r"will be full after about iteration [34] of 6: .* 1\.5 MB free.*--keep-last 2", lines[-1]), lines[
        -1
    ]


@pytest.mark.parametrize(
    "free, last, says", [(35, None, 2), (25, None, 1), (15, None, None), (45, 5, 3), (25, 1, None)]
)  # fmt: skip
def test_the_keep_last_that_is_named_is_one_that_there_is_room_for(free, last, says):
    found = disk._fewer(disk.DiskSpace(size=10, free=free, keep=storage.Keep(last)), list(range(1, 7)))
    assert found == (f"--keep-last {says} keeps only the newest, " if says else "")


def until(text, lines):
    def say(line):
        lines.append(line)
        if text in line:
            raise StopIteration

    return say


# ---- when it runs out ------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("background", [False, True])
def test_a_full_disk_ends_the_run_and_costs_no_checkpoint(background, run, whole, mounted):
    """Filled by somebody else after the third step: the save at 4 has no room; the checkpoint at 2 is whole."""
    save = {"save": str(mounted / "run"), "save_interval": 2, "async_save": background}
    lines = []

    def say(line):
        lines.append(line)
        if "iteration        3/" in line:
            fill(mounted, leave=60_000)

    train(**run, **save, exit_after=2)
    with pytest.raises(DiskFull) as caught:
        train(say, **run, **save)
    text = str(caught.value)
    assert re.search(
        r"iteration [456] was not saved: no room left on the disk of .*run, which has \d+ kB free, and a", text
    )
    assert "takes about 5" in text and "the last checkpoint is 2" in text and "the same command resumes" in text, text
    assert held(mounted / "run") == [2] == [folders.latest(mounted / "run")] and not list((mounted / "run").glob(".*"))
    (mounted / "filler").unlink()
    assert train(**run, **save)["losses"] == whole[2:]


def test_a_run_may_go_on_and_save_when_there_is_room_again(run, whole, mounted):
    lines = []

    def say(line):
        lines.append(line)
        if "iteration        3/" in line:
            fill(mounted, leave=200_000)
        if "warning" in line and "was not saved" in line:
            (mounted / "filler").unlink()

    result = train(say, **run, save=str(mounted / "run"), save_interval=2, on_full_disk="continue", keep_last=1)
    assert result["losses"] == whole and held(mounted / "run") == [6]
    [line] = [line for line in lines if "was not saved" in line]
    assert "iteration 4 was not saved: no room left" in line and "the next save tries again" in line


def test_a_last_save_without_room_is_an_error_by_any_policy(run, mounted):
    say = lambda line: fill(mounted, leave=20_000) if "iteration        1/" in line else None  # noqa: E731
    with pytest.raises(DiskFull, match=r"iteration 2 was not saved: .*there is no checkpoint yet. The run ends here"):
        train(say, **run, save=str(mounted / "run"), on_full_disk="continue", exit_after=2)
    assert not held(mounted / "run") and not list((mounted / "run").glob(".*"))


PLACES = {"the first file": "write_common", "the index": "write_index", "what is beside": "finish", "a name": "_flush"}


@pytest.mark.parametrize("place", PLACES)
def test_wherever_the_quota_is_used_up(place, run, tmp_path, monkeypatch):
    """EDQUOT, at each kind of file that rank 0 writes; and nothing half is left."""
    from mconv.convert.formats import distcp
    from mconv.train.checkpoints import metadata

    def used_up(*_, **__):
        raise OSError(errno.EDQUOT, "Disk quota exceeded")

    module = {"write_common": distcp, "write_index": distcp, "finish": metadata, "_flush": folders}[PLACES[place]]
    train(**run, save=str(tmp_path), exit_after=1)
    monkeypatch.setattr(module, PLACES[place], used_up)
    with pytest.raises(DiskFull, match=r"iteration 2 was not saved: no room left.*Disk quota exceeded.*checkpoint is 1"):
        train(**run, save=str(tmp_path), exit_after=2)
    assert held(tmp_path) == [1] == [folders.latest(tmp_path)] and not list(tmp_path.glob(".*"))


def test_another_failure_is_not_taken_for_a_full_disk():
    with pytest.raises(MconvError) as caught, disk.noticed():
        raise OSError(errno.EIO, "Input/output error")
    assert type(caught.value) is MconvError
    with pytest.raises(RuntimeError, match="a fault"), disk.noticed():
        raise RuntimeError("a fault of ours")


# ---- work that nothing would save ------------------------------------------------------------------------------------
def test_a_run_that_saves_nothing_says_so(run):
    lines = []
    train(lines.append, **{**run, "train_iters": 1})
    assert [line for line in lines if "nothing will be saved, since there is no --save" in line]


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        (
            {},
            r"nothing is saved before iteration 1000, in about 2:46:00.*--save-interval 60 would save about every 10:00",
        ),
        ({"save_interval": 5000}, "nothing is saved before iteration 1000"),
        ({"save_interval": 500}, None),
        ({"exit_after": 30}, None),
    ],
)
def test_a_long_run_without_checkpoints_is_told_once_its_speed_is_known(fields, said):
    config = make({"load": "x", "data": ["p"], "train_iters": 1000, "lr": 1.0, "save": "s", **fields})
    watch = unsaved(config, iteration=0, iterations=1000)
    lines = [watch.step(step, 100.0 if step == 1 else 10.0) for step in range(1, 9)]
    found = [line for line in lines if line]
    assert lines[:3] == [None] * 3 and len(found) == bool(said)
    assert said is None or re.search(said, found[0])


def test_the_run_itself_watches(run, tmp_path, monkeypatch):
    monkeypatch.setattr("mconv.train.loop.unsaved.LONG", -1.0)
    lines = []
    train(lines.append, **run, save=str(tmp_path), exit_after=5)
    [found] = [number for number, line in enumerate(lines) if "nothing is saved before iteration 5, in about 0:0" in line]
    assert "iteration        4/" in lines[found - 1], "once, after the step that tells the speed"
