"""What `mconv train` loads and saves where nobody says, and what `mconv status` makes of odd folders."""

import json
from functools import partial

import lineage
import pytest

from mconv.cli import choose
from mconv.cli.app import run
from mconv.cli.fields import here
from mconv.errors import MconvError

DATA = {"data": ["x"], "lr": 1.0}


@pytest.fixture
def make(tmp_path, monkeypatch):
    """A function that writes a checkpoint's manifest into the current folder."""
    monkeypatch.chdir(tmp_path)
    return partial(lineage.checkpoint, tmp_path)


def told(**values):
    found = here({**DATA, **values})
    return found["load"], found["save"]


def test_a_run_starts_from_the_newest_and_the_same_command_goes_on(tmp_path, make, capsys):
    base = make("llama-megatron-tp4")
    assert told() == ("llama-megatron-tp4", "llama-run")
    assert told(eval_only=True) == ("llama-megatron-tp4", None)
    assert told(save="mine") == ("llama-megatron-tp4", "mine")
    assert "--load llama-megatron-tp4 --save llama-run" in capsys.readouterr().err
    (tmp_path / "llama-run").mkdir()
    (tmp_path / "llama-run" / "run.lock").write_text("{}")
    assert told()[1] == "llama-run", "it was stopped before it had saved anything"
    make("llama-run", base, step="train", iteration=5)
    assert told() == ("llama-megatron-tp4/release", "llama-run")
    assert told(save="second") == ("llama-run", "second"), "another stage begins where the run stands"
    assert told(save="second", finetune=True) == ("llama-run", "second")
    with pytest.raises(MconvError, match="--finetune begins a new run with the weights of llama-run; give --save"):
        told(finetune=True)
    make("llama-megatron-tp2", base)
    with pytest.raises(MconvError, match=r"2 fit equally.*give --load"):
        told()
    assert told(save="llama-run") == ("llama-megatron-tp4/release", "llama-run"), "the run is named"


@pytest.mark.parametrize("values", [{"load": "y"}, {"init": "random"}, {"preset": "p"}, {"model": "m"}])
def test_what_is_told_stands(make, capsys, values):
    make("base")
    assert here(DATA | values) == DATA | values and capsys.readouterr().err == ""


def test_a_default_folder_that_is_taken_is_refused(tmp_path, make):
    make("base-megatron")
    (tmp_path / "base-run").mkdir()
    (tmp_path / "base-run" / "thesis.txt").write_text("years of work")
    with pytest.raises(MconvError, match="base-run, where this run would be saved by default, is taken"):
        told()


def test_within_a_checkpoint_nothing_is_chosen(tmp_path, make, monkeypatch, capsys):
    make("run", step="train", iteration=5)
    monkeypatch.chdir(tmp_path / "run")
    for words in (["reshard"], ["meg2hf"], ["verify"], ["train", "--data", "x"]):
        assert run(words) == 2 and "is itself a Megatron root" in capsys.readouterr().err
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == [
        "iter_0000005",
        "latest_checkpointed_iteration.txt",
    ]


def status(capsys, *options):
    assert run(["status", *options]) == 0
    return capsys.readouterr()


def test_status_of_a_folder_with_all_that_can_be_met(tmp_path, make, capsys):
    """Sources that are gone or elsewhere, a run that went on, siblings, a circle, a damaged one, unfinished outputs."""
    base = make("base", tmp_path / "gone", tmp_path.parent)
    old = make("run", base, step="train", iteration=5)
    make("export", old, kind="hf", step="meg2hf", layout=[1], dtype={"a": 1})
    make("run", base, step="train", iteration=10)
    x, y = make("x", step="a"), make("y", step="b")
    for one, other in ((x, y), (y, x)):
        (one / "mconv.json").write_text(json.dumps({"ancestors": [str(other)]}))
    (make("broken") / "mconv.json").write_text("{")
    make(".mconv-partial-next", base)
    (tmp_path / ".mconv-log.jsonl").write_text(
        'not JSON\n[1]\n{"of": "export", "made": null, "what": "pushed", "repo": 5}\n'
    )
    said = status(capsys)
    for words in ("(not in this folder)", "run/iter_0000005 (an iteration that the run has left behind)", "x\n", "y\n",
                  "iterations 5, 10", "next: an unfinished conversion", "pushed to 5"):  # fmt: skip
        assert words in said.out, said.out
    assert "broken" in said.err and said.out.count("export\n") == 1 and said.out.count("base\n") == 1
    found = json.loads(status(capsys, "--json").out)
    assert [one["name"] for one in found["unfinished"]] == ["next"] and "broken" in found["notes"][0]
    assert status(capsys, str(tmp_path)).out.count("export\n") == 1
    assert run(["status", "nowhere"]) == 2


def test_the_next_command_is_ready_to_paste_but_for_words_in_capitals(tmp_path, capsys):
    (tmp_path / "run.yaml").write_text("data: data/text\nlr: 1e-4\n")
    choose.next_training(data="data/my text", data_type="instruction")
    choose.next_training(tmp_path / "run.yaml", train_iters=5, bf16=True, packing=False, vpp=None)
    choose.next_training(preset="llama2-7b", init="random", eval_only=True, data=["a", "b"])
    choose.next_command("push", "a folder")
    assert capsys.readouterr().out.splitlines() == [
        "next: mconv train --data 'data/my text' --data-type instruction --lr LR --train-iters N",
        f"next: mconv train {tmp_path / 'run.yaml'} --train-iters 5 --bf16 --packing=false",
        "next: mconv train --preset llama2-7b --init random --eval-only --data a b",
        "next: mconv push 'a folder'",
    ]
