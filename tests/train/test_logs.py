"""What a run tells: lines and their extras, arguments and origins, the record, progress.txt, boards, the live view."""

import dataclasses
import io
import json
import os
import re
import subprocess
import sys
import types
from collections import deque
from datetime import datetime
from pathlib import Path

import jobs
import pytest

from mconv.cli import app, live
from mconv.errors import CheckFailed, MconvError
from mconv.train.config import make
from mconv.train.estimate.flops import per_token
from mconv.train.logs import boards, megatron_log, progress, record
from mconv.train.logs import log as logs
from mconv.train.logs.meter import Meter, clock
from mconv.train.loop import callbacks

pytestmark = pytest.mark.once

KEY = "0123456789abcdef-secret"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return jobs.fields(tmp_path_factory.mktemp("logs"), spec=jobs.SMALL, train_iters=4)


def train(said=None, show=None, **fields):
    from mconv.train.loop import train as run

    return run(make(fields), say=(lambda line: None) if said is None else said.append, show=show)


class Wandb(types.ModuleType):
    """A stand-in for the package: what it is told, and an id for each new run."""

    def __init__(self):
        super().__init__("wandb")
        self.begun, self.numbers, self.ended = [], [], 0

    def init(self, **options):
        self.begun.append(options)
        ended = lambda: setattr(self, "ended", self.ended + 1)  # noqa: E731
        return types.SimpleNamespace(
            id=options["id"] or "run-1", log=lambda values, step: self.numbers.append((step, values)), finish=ended
        )


# ---- a whole run -----------------------------------------------------------------------------------------------------
def test_what_a_run_says_and_leaves(run, tmp_path, monkeypatch):
    """One run in two parts with everything on; the key must be nowhere, whatever is written."""
    wandb, said, shown = Wandb(), [], []
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setenv("NCCL_DEBUG_FILE", f"/logs/{KEY}/x")
    monkeypatch.setattr(
        sys, "argv", ["mconv", "train", "--token", "abc", "--eod-token", "7", f"--x={KEY}", "http://me:pw@host/data"]
    )
    monkeypatch.setenv("MCONV_PEAK_TFLOPS", "2")
    save = tmp_path / "run"
    fields = {
        **run, "save": str(save), "wandb_project": "p", "wandb_exp_name": "n", "log_throughput": True,
        "split": "90,10,0", "eval_interval": 2, "eval_iters": 1, "export_hf_every": 1, "save_interval": 2,
        "after_checkpoint": f'echo "$1" "$MCONV_ITERATION" "$MCONV_HF_FOLDER" "$WORLD_SIZE" >> {tmp_path}/hook; : {KEY}',
    }  # fmt: skip
    train(said, **fields, exit_after=2)
    train(None, shown.append, **fields)

    dump = "\n".join(said)
    assert re.search(rf"  rotary_base \.+ 10000  \(from {re.escape(Path(run['load']).name)}\)", dump)
    assert re.search(r"  padded_vocab_size \.+ 96  \(90 padded for tp 1\)", dump) and re.search(r"  lr \.+ 0.01\n", dump)
    names = [
        line.split()[0]
        for line in said[said.index(f"{' arguments ':-^59}") + 1 : said.index(f"{' end of arguments ':-^59}")]
    ]
    assert names == sorted(names) and {"hidden_size", "train_iters", "seq_length"} <= set(names)
    lines = [found for found in map(megatron_log.iteration_line, said) if found]
    assert [line.iteration for line in lines] == [1, 2]
    values = lines[1].values
    assert list(values)[2] == megatron_log.THROUGHPUT and values["memory (GiB)"] > 0.05 and "| eta: " in dump

    steps = [json.loads(line) for line in (save / logs.NAME).read_text().splitlines()]
    steps = [step for step in steps if "loss" in step]
    flops = per_token(jobs.variant(num_layers=2), 16)
    for step in steps:
        assert step["tflops_per_gpu"] == pytest.approx(step["tokens_per_second"] * flops / 1e12)
        assert step["mfu"] == pytest.approx(step["tflops_per_gpu"] / 2)
    assert [step["iteration"] for step in shown] == [3, 4] and shown[0]["seconds_left"] == pytest.approx(
        shown[0]["seconds"]
    )

    assert [begun["id"] for begun in wandb.begun] == [None, "run-1"] and wandb.ended == 2
    assert {begun["mode"] for begun in wandb.begun} == {"online"} and wandb.begun[0]["project"] == "p"
    assert [step for step, values in wandb.numbers if "loss" in values] == [1, 2, 3, 4]
    assert any("validation_loss" in values for _, values in wandb.numbers)

    folders = [save / f"iter_{n:07d}" for n in (2, 4)]
    hooked = [f"{folder} {n} {save / 'hf' / folder.name} " for n, folder in zip((2, 4), folders, strict=True)]
    assert (tmp_path / "hook").read_text().splitlines() == hooked
    assert all((save / "hf" / folder.name / "model.safetensors").is_file() for folder in folders)
    told = [line.split("\t")[3] for line in (save / progress.NAME).read_text().splitlines()]
    assert told == [progress.START, progress.SAVED[0]] * 2

    starts = json.loads((save / record.NAME).read_text())["starts"]
    assert [start["iteration"] for start in starts] == [0, 2] and starts[0]["packages"]["torch"]
    assert starts[0]["command"] == [
        "mconv",
        "train",
        "--token",
        "[redacted]",
        "--eod-token",
        "7",
        "--x=[redacted]",
        "http://[redacted]@host/data",
    ]
    assert starts[0]["environment"]["NCCL_DEBUG_FILE"] == "/logs/[redacted]/x"
    everything = [dump, json.dumps(wandb.begun, default=str)]
    everything += [file.read_text(errors="replace") for file in save.rglob("*") if file.is_file()]
    assert not any(KEY in text for text in everything)


def test_an_export_is_made_once(run, tmp_path, monkeypatch, capsys):
    """And it is the export that `meg2hf --iterations` makes: that finds it there."""
    train(**run, save=str(tmp_path), export_hf_every=1, save_interval=2, exit_after=2)
    whole = callbacks.rewrite
    monkeypatch.setattr(callbacks, "rewrite", lambda *a, **k: pytest.fail("made again"))
    assert callbacks.export(tmp_path / "iter_0000002") == tmp_path / "hf" / "iter_0000002"
    assert app.run(["meg2hf", str(tmp_path), "--out", str(tmp_path / "hf"), "--iterations", "all"]) == 0
    assert "already there" in capsys.readouterr().out
    (tmp_path / "hf" / "iter_0000002" / "model.safetensors").unlink()  # a damaged one is made again
    monkeypatch.setattr(callbacks, "rewrite", whole)
    assert (callbacks.export(tmp_path / "iter_0000002") / "model.safetensors").is_file()


@pytest.mark.parametrize("background", [False, True])
def test_a_failing_command_warns_or_stops(background, run, tmp_path):
    said = []
    fields = {**run, "save_interval": 2, "after_checkpoint": "exit 3", "after_checkpoint_background": background}
    assert train(said, **fields, save=str(tmp_path / "warn"))["iteration"] == 4
    assert [line for line in said if "warning" in line] == [
        f"warning: after_checkpoint of iter_000000{n}: exit code 3" for n in (2, 4)
    ]
    with pytest.raises(CheckFailed, match=r"after_checkpoint of iter_0000002: exit code 3.*the run stops"):
        train(**fields, save=str(tmp_path / "stop"), after_checkpoint_failure="stop")


def test_a_command_in_the_background_does_not_hold_up_training(run, tmp_path):
    """It waits for a file that only a later step makes: were it waited for, neither would go on.

    Nor is what it has been given taken from it, though another checkpoint is the newest one by then.
    """
    command = f'while [ ! -f {tmp_path}/later ]; do sleep 0.02; done; test -d "$1" && touch {tmp_path}/done'
    show = lambda record: (tmp_path / "later").touch() if record["iteration"] == 3 else None  # noqa: E731
    train(
        show=show,
        **run,
        save=str(tmp_path / "run"),
        save_interval=1,
        keep_last=1,
        after_checkpoint=command,
        after_checkpoint_background=True,
        after_checkpoint_failure="stop",
    )
    assert (tmp_path / "done").is_file()


def test_arguments_that_are_not_default_or_all():
    """Nothing that does not apply: no factor of a scaling that the model has not. Both forms are Megatron-LM's."""
    fields = {"load": "x", "data": ["p"], "train_iters": 5, "lr": 1.0, "min_lr": 0.0, "tp": 1, "clip_grad": 0.5}
    inherited = {"padded_vocab_size": (96, "90 padded for tp 1")}

    def listed(spec=jobs.SPEC, **more):
        made = record.arguments(make({**fields, **more}), spec, inherited=inherited, source="hf")
        return megatron_log.read(made).arguments, made[-1]

    short, hint = listed()
    assert {"lr": "1.0", "clip_grad": "0.5", "padded_vocab_size": "96  (90 padded for tp 1)"}.items() <= short.items()
    assert short["rotary_base"] == "10000  (from hf)" and "--print-args" in hint
    assert not {"tp", "min_lr", "adam_beta1", "save", "window_size", "add_bias_linear", "print_args"} & set(short)
    whole, last = listed(print_args=True)
    assert set(short) < set(whole) and whole["adam_beta1"] == "0.9" and whole["save"] == "None" and "end of" in last
    scaled = dataclasses.replace(jobs.SPEC, rope=jobs.ROPES["llama3"])
    for one in (short, whole):
        assert "rope_scaling_factor" not in one
    assert listed(scaled)[0]["rope_scaling_factor"] == "8.0  (from hf)"


# ---- parts -----------------------------------------------------------------------------------------------------------
def test_throughput_over_the_jobs_of_a_run(tmp_path):
    """Two jobs on 4 GPUs after one on 2: the cumulative figure counts from the first on 4, async saves included."""
    file = tmp_path / progress.NAME
    rows = [
        ("2026-11-25 10:00:00", 2, "Starting job"),
        ("2026-11-25 11:00:00", 2, "Saving async checkpoint", "It: 5", "", "", "Floating-point operations: 1.00e+15"),
        ("2026-11-25 12:00:00", 4, "Starting job"),
        ("2026-11-25 13:00:00", 4, "Saved checkpoint", "Iteration: 9", "", "", "Floating-point operations: 3.00e+15"),
        ("2026-11-25 14:00:00", 4, "Starting job"),
    ]  # fmt: skip
    file.write_text("".join("\t".join([a, "Job ID: 7", f"# GPUs: {b}", *c]) + "\n" for a, b, *c in rows))
    kept = progress.Progress(file=file, gpus=4, began=datetime(2026, 11, 25, 14), flops_before=3e15)
    assert kept._unbroken() == (datetime(2026, 11, 25, 12), 1e15)
    kept.saved(iteration=12, flops=4e15, tokens=2_500_000_000)
    words = file.read_text().splitlines()[-1].split("\t")
    assert words[1:5] == ["Job ID: ", "# GPUs: 4", "Saved checkpoint", "Iteration: 12"]
    assert words[7:] == ["Floating-point operations: 4.00e+15", "Tokens (in billions): 2.50"]
    assert words[5].startswith("Job throughput: ") and words[5].endswith(" TFLOP/s/GPU")


def test_wandb_without_a_key_is_offline_and_missing_is_asked_for(monkeypatch):
    for name in ("WANDB_MODE", "WANDB_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    assert boards.mode() == "offline"
    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert boards.mode() == "disabled"
    monkeypatch.setitem(sys.modules, "wandb", None)
    config = make({"load": "x", "data": ["p"], "train_iters": 1, "lr": 1.0, "wandb_project": "p"})
    with pytest.raises(MconvError, match="pip install wandb"):
        boards.boards(config, described={})


def test_the_time_left_is_that_of_the_steps_to_come():
    made = Meter(ranks=2, train_iters=10, per_token=1e9, peak=None, recent=deque(maxlen=2))
    for iteration, seconds in ((1, 100.0), (2, 1.0), (3, 3.0)):
        found = made.measure(iteration=iteration, seconds=seconds, tokens_per_second=4000.0)
    assert found["seconds_left"] == 7 * 2.0 and found["tflops_per_gpu"] == 2.0 and "mfu" not in found
    assert [clock(x) for x in (5.0, 3725.0, 90061.0, 180000.0)] == [
        "0:05",
        "1:02:05",
        "1 day, 1:01:01",
        "2 days, 2:00:00",
    ]


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_pipe_and_a_terminal_that_cannot_go_back_get_lines(monkeypatch, capsys):
    with live.view(10) as (say, show):
        say("a line")
    assert show is None and capsys.readouterr().out == "a line\n"
    monkeypatch.setattr(sys, "stdout", Terminal())
    monkeypatch.setenv("TERM", "dumb")
    with live.view(10) as (say, show):
        assert show is None


WIDTHS = {
    110: "loss 1.2500  1 day, 1:01:01 left  12,346 tokens/s  lr 1.00e-04  MFU 41 %",
    80: "loss 1.2500  1 day, 1:01:01 left  12,346 tokens/s",
    50: "loss 1.2500",
    34: "loss 1.2500",
}


@pytest.mark.parametrize("width", WIDTHS)
def test_a_terminal_gets_a_bar_with_what_there_is_room_for(width, monkeypatch):
    monkeypatch.setattr(sys, "stdout", terminal := Terminal())
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", str(width))
    record = {"iteration": 444, "loss": 1.25, "lr": 1e-4, "tokens_per_second": 12345.6, "seconds_left": 90061.0}
    with live.view(1000) as (say, show):
        say("saved [1] there")
        show({**record, "mfu": 0.41})
    shown = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", terminal.getvalue())
    assert "saved [1] there" in shown
    [last] = [line.strip() for line in re.split(r"[\r\n]+", shown) if "loss" in line][-1:]
    assert re.fullmatch(rf" *444/1000 [━╸╺ ]+{re.escape(WIDTHS[width])}", last), last


@pytest.fixture
def repository(tmp_path):
    """A folder under git with one file, and what runs git there."""
    (folder := tmp_path / "code").mkdir()

    def git(*words):
        env = {**os.environ, "GIT_CONFIG_GLOBAL": "/dev/null"}
        subprocess.run(["git", "-c", "user.name=a", "-c", "user.email=a@b", *words], cwd=folder, check=True, env=env)

    (folder / "x").write_text("1\n")
    for words in (["init", "-q"], ["add", "x"], ["commit", "-qm", "x"]):
        git(*words)
    return folder, git


def test_git_is_told_where_there_is_any(tmp_path, repository):
    assert record.git(tmp_path) is None
    folder, _ = repository
    assert record.git(folder)["changed"] is False and re.fullmatch(r"[0-9a-f]{40}", record.git(folder)["commit"])
    (folder / "x").write_text("2")
    assert record.git(folder)["changed"] is True


def test_changed_code_is_kept_once_and_told_of_where_a_run_goes_on(tmp_path, repository, monkeypatch):
    folder, git = repository
    monkeypatch.chdir(folder)
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    (save := tmp_path / "save").mkdir()
    config = make({"load": "x", "data": ["p"], "train_iters": 1, "lr": 1.0})

    def start(text, iteration=3):
        (folder / "x").write_text(text)
        return [note for note in record.write(save, config, jobs.SPEC, ranks=1, iteration=iteration) if "folder" in note]

    assert start("1\n", 0) == start("1\n") == start(f"1\n{KEY}\n\n", 0) == []
    [note] = start("2\n")
    starts = json.loads((save / record.NAME).read_text())["starts"]
    diffs = [one["git"].get("diff") for one in starts]
    assert diffs[:2] == [None, None] and diffs[2][:12] in note and diffs[3][:12] in note and start("2\n") == []
    assert {file.name for file in (save / record.CODE).iterdir()} >= set(diffs[2:]) and diffs[2] != diffs[3]
    assert KEY not in (save / record.CODE / diffs[2]).read_text()
    git("checkout", "-q", "x")
    git("apply", str(save / record.CODE / diffs[3]))
    assert (folder / "x").read_text() == "2\n"
    assert record.differences({"packages": {"torch": "1"}}, {"packages": {"torch": "2"}}) == [
        "note: torch was 1 at the run's last start and is 2 now"
    ]


def test_numbers_that_json_has_not_are_null(tmp_path):
    log = logs.Log(say=lambda _: None, train_iters=3, global_batch_size=1, interval=9, file=tmp_path / logs.NAME)
    for loss in (float("nan"), float("inf"), 1.5):
        log.step(
            logs.Step(
                iteration=1, consumed_samples=1, loss=loss, grad_norm=None, lr=0.0, seconds=1.0, tokens_per_second=1.0
            )
        )
    rows = [json.loads(row, parse_constant=pytest.fail) for row in (tmp_path / logs.NAME).read_text().splitlines()]
    assert [row["loss"] for row in rows] == [None, None, 1.5]
