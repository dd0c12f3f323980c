"""What a killed command leaves is named for what it is by every command that is given it, with what completes it."""

import fcntl
import json

import pytest
import torch
from interrupts import stop_after
from tiny import make_llama

from mconv.cli.app import run
from mconv.convert.folders import scan, unfinished
from mconv.convert.folders.recognize import what_is
from mconv.convert.folders.staging import PULL


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    """A model, and conversions of it to each format that Ctrl-C ended in the middle."""
    root = tmp_path_factory.mktemp("killed")
    make_llama(root / "hf", dtype=torch.bfloat16)
    assert run(["hf2meg", str(root / "hf"), "--out", str(root / "whole")]) == 0
    for command, formats in (("hf2meg", ("torch_dist", "mp_rank")), ("meg2hf", ("hf",))):
        for form in formats:
            source, options = ("hf", ["--format", form]) if command == "hf2meg" else ("whole", [])
            with pytest.MonkeyPatch.context() as patch:
                stop_after(patch, 12)
                out = str(root / f"new-{form}")
                interrupted(command, root / source, "--out", out, *options)
    return root


def interrupted(*argv):
    """Run a command that Ctrl-C ends."""
    assert run([str(word) for word in argv]) == 130


def command_of(root, form):
    source, options = ("whole", "") if form == "hf" else ("hf", f" --format {form}")
    return f"mconv {'meg2hf' if form == 'hf' else 'hf2meg'} {root / source} --out {root / f'new-{form}'}{options}"


def names(root, form):
    """Return what a user may name: the output, the folder in which it is written, and the journal."""
    out = root / f"new-{form}"
    staging = root / f".mconv-partial-new-{form}" if form == "hf" else out / ".mconv-partial-release"
    return out, staging, staging.with_name(staging.name + ".journal")


def _text(root):
    (root / "text.txt").write_text("a line\n")
    return root / "text.txt"


COMMANDS = {
    "inspect": lambda path, root: ["inspect", path],
    "verify": lambda path, root: ["verify", root / "hf", path],
    "verify, first": lambda path, root: ["verify", path, root / "hf"],
    "verify, alone": lambda path, root: ["verify", path],
    "train": lambda path, root: ["train", "--load", path, "--mock-data", "--train-iters", "1", "--lr", "1e-4"],
    "train --verify-first": lambda path, root: [
        "train", "--load", path, "--mock-data", "--train-iters", "1", "--lr", "1e-4", "--verify-first"],
    "plan": lambda path, root: ["plan", "--load", path, "--mock-data"],
    "reshard": lambda path, root: ["reshard", path, "--out", root / "x", "--tp", "2"],
    "merge": lambda path, root: ["merge", path, "--out", root / "x"],
    "meg2hf": lambda path, root: ["meg2hf", path, "--out", root / "x"],
    "hf2meg": lambda path, root: ["hf2meg", path, "--out", root / "x"],
    "push": lambda path, root: ["push", path, "a/b"],
    "data tokenize": lambda path, root: ["data", "tokenize", _text(root), "--out", root / "x", "--tokenizer", path],
    "lora export": lambda path, root: ["lora", "export", path, "--out", root / "x"],
    "lora merge": lambda path, root: ["lora", "merge", path, "--out", root / "x"],
}  # fmt: skip


@pytest.mark.parametrize("form", ["torch_dist", "hf"])
@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_that_is_given_one_says_what_completes_it(killed, form, command, capsys):
    for path in names(killed, form)[:2]:
        assert run([str(word) for word in COMMANDS[command](path, killed)]) == 2
        error = " ".join(capsys.readouterr().err.split())
        assert "an unfinished conversion (made by `" + command_of(killed, form) + "`, " in error, (path, error)
        assert " % written)" in error and "the same command with --resume completes it" in error
        assert not (killed / "x").exists()


def test_the_share_that_is_written_grows_and_the_journal_is_named_too(killed, capsys):
    for form in ("torch_dist", "mp_rank", "hf"):
        text = what_is(names(killed, form)[2]).text
        share = int(text.partition(" % written")[0].rpartition(" ")[2])
        assert 0 < share < 100
    assert run(["status", str(killed)]) == 0
    out = capsys.readouterr().out
    for form in ("torch_dist", "mp_rank", "hf"):
        assert f"new-{form}: an unfinished conversion (made by `{command_of(killed, form)}`" in out
    assert {"new-hf", "new-mp_rank", "new-torch_dist"} == set(scan.unfinished_in(killed))


def test_resume_completes_it_and_one_that_another_process_writes_is_not_called_unfinished(killed, tmp_path, capsys):
    out = killed / "again"
    with pytest.MonkeyPatch.context() as patch:
        stop_after(patch, 12)
        interrupted("hf2meg", killed / "hf", "--out", out)
    assert capsys.readouterr().err.endswith("the same command with --resume completes it\nmconv: interrupted\n")
    lock = out / ".mconv-partial-release.lock"
    lock.touch()
    with lock.open() as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert run(["inspect", str(out)]) == 2
        assert "another mconv is writing now" in (error := capsys.readouterr().err) and "wait for it to end" in error
    lock.unlink()
    assert run(["hf2meg", str(killed / "hf"), "--out", str(out), "--resume"]) == 0
    assert what_is(out).readable and "again" not in scan.unfinished_in(killed)


def test_a_conversion_without_its_tracker_lacks_nothing_but_that(killed, monkeypatch, capsys):
    """Killed between the folder's rename and the tracker."""
    from mconv.convert.engine import publish

    def stop(plan):
        raise KeyboardInterrupt

    out = killed / "late"
    with monkeypatch.context() as patch:
        patch.setattr(publish, "write_tracker", stop)
        interrupted("hf2meg", killed / "hf", "--out", out)
    assert run(["inspect", str(out)]) == 2
    assert "all written, but nothing points to it yet); the same command" in capsys.readouterr().err
    assert run(["hf2meg", str(killed / "hf"), "--out", str(out), "--resume"]) == 0


def test_a_checkpoint_beside_which_one_is_unfinished_is_read(killed, tmp_path, capsys):
    with pytest.MonkeyPatch.context() as patch:
        stop_after(patch, 12)
        interrupted("hf2meg", killed / "hf", "--out", killed / "whole", "--overwrite")
    assert run(["inspect", str(killed / "whole")]) == 0
    assert run(["status", str(killed)]) == 0
    assert "whole/release: an unfinished conversion" in capsys.readouterr().out
    assert run(["hf2meg", str(killed / "hf"), "--out", str(killed / "whole"), "--overwrite", "--resume"]) == 0


def test_a_save_and_a_download_that_were_killed(tmp_path, capsys):
    staging = tmp_path / "run" / ".iter_0000007.0a1b2c3d.partial"
    staging.mkdir(parents=True)
    (tmp_path / "run" / "run.json").write_text("{}")
    for path in (staging, tmp_path / "run"):
        assert run(["inspect", str(path)]) == 2
        error = capsys.readouterr().err
        assert "iteration 7" in error and "save was not finished, or is under way" in error and "start the run" in error
    model = tmp_path / "model"
    (model / PULL.parent / "download").mkdir(parents=True)
    (model / "config.json").write_text("{}" * 10)
    (model / PULL.parent / "download" / "x.incomplete").write_bytes(b"x" * 20)
    record = {"repo": "acme/tiny", "revision": "try", "files": {"config.json": 20, "model.safetensors": 60}}
    (model / PULL).write_text(json.dumps(record))
    assert run(["inspect", str(model)]) == 2
    assert (
        f"{model} is an unfinished download of acme/tiny (50 % there); `mconv pull acme/tiny {model} --revision try` "
        "completes it" in capsys.readouterr().err
    )
    assert set(scan.unfinished_in(tmp_path)) == {"model", "run"}


@pytest.mark.parametrize("plan", ["", "[]", "{", '{"of": 3, "sizes": [1], "command": {}}', '{"sizes": {"a": "b"}}'])
def test_a_journal_that_says_nothing_stops_nothing(tmp_path, plan):
    """Killed before its first line, or written by somebody else."""
    (tmp_path / ".mconv-partial-x").mkdir()
    (tmp_path / ".mconv-partial-x.journal").mkdir()
    (tmp_path / ".mconv-partial-x.journal" / "plan.json").write_text(plan)
    (tmp_path / ".mconv-partial-x.journal" / "done-0.jsonl").write_text('\n[]\n{"logical": 3}\n{"log')
    found = unfinished.at(tmp_path / "x")
    assert found and found.text.startswith("an unfinished conversion")
