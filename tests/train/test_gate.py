"""`mconv train --verify-first`: nothing is trained on a checkpoint that is not what it was converted from."""

import shutil
import subprocess
import sys

import jobs
import pytest
from safetensors.torch import save_file
from tiny import edit_json, make_llama, tensors

from mconv.cli.app import run
from mconv.train.launch import ranks


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """A LLaMA, its conversion, another layout of that, and data."""
    tmp = tmp_path_factory.mktemp("gate")
    make_llama(tmp / "hf", max_position_embeddings=64)
    assert run(["hf2meg", str(tmp / "hf"), "--out", str(tmp / "megatron"), "--tp", "2"]) == 0
    assert run(["reshard", str(tmp / "megatron"), "--out", str(tmp / "again"), "--tp", "1", "--format", "mp_rank"]) == 0
    jobs.train_data(tmp)
    return tmp


@pytest.fixture
def place(tree, tmp_path):
    """A copy that a test may spoil."""
    shutil.copytree(tree, tmp_path / "place")
    return tmp_path / "place"


def words(place, *options, load="again", save="run", iters=2):
    argv = ["train", "--load", place / load, "--data", place / "data", "--save", place / save, "--train-iters", iters]
    argv += ["--lr", 1e-3, "--seq-length", 16, "--global-batch-size", 2, "--verify-first", *options]
    return [str(word) for word in argv]


def swap_gate_and_up(folder):
    held = tensors(folder)
    a, b = (f"model.layers.1.mlp.{name}_proj.weight" for name in ("gate", "up"))
    held[a], held[b] = held[b], held[a]
    save_file(held, folder / "model.safetensors", metadata={"format": "pt"})


def test_what_is_proven_is_trained_and_a_fault_is_not(place, capfd):
    assert run(words(place)) == 0
    out = capfd.readouterr().out
    assert "PASS: hf (transformers) against again/release" in out, "the first source, not the checkpoint in between"
    assert out.index("PASS") < out.index("starting from again/release") < out.index("saved")
    shutil.rmtree(place / "run")
    swap_gate_and_up(place / "hf")
    assert run(words(place)) == 1
    out = capfd.readouterr().out
    assert "FAIL: hf" in out and "nothing was trained" in out.splitlines()[-1]
    assert not (place / "run").exists()
    shutil.rmtree(place / "hf")
    assert run(words(place)) == 0, "the next source that is there"
    assert "PASS: megatron/release" in capfd.readouterr().out


def test_it_is_judged_at_the_layout_of_the_run(place, capfd, world, monkeypatch):
    """The ranks that it would start for each of the two are those of `world`."""
    begun = []

    def started(target, payload, *, nproc, **_):
        begun.append((target, nproc))
        return world.run(jobs.work, target=target, payload=payload)[0]

    monkeypatch.setattr(ranks, "run", started)
    layout = ["--tp", "2", "--pp", "2", "--sequence-parallel"]
    assert run(words(place, *layout, load="megatron")) == 0
    assert begun == [("mconv.verify.logits:work", 4), ("mconv.cli.train:work", 4)]
    out = capfd.readouterr().out
    assert "tp 2 x pp 2 with sequence parallelism" in out.splitlines()[0], out


@pytest.mark.parametrize("wrong", [False, True])
@pytest.mark.once
def test_every_rank_of_torchrun_hears_the_verdict(place, wrong):
    if wrong:
        swap_gate_and_up(place / "hf")
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "mconv"]
    done = subprocess.run([*launch, *words(place)], capture_output=True, text=True, timeout=300)  # tp 1: two replicas
    assert (done.returncode != 0) == wrong == ("FAIL: hf" in done.stdout), done.stdout + done.stderr[-2000:]
    assert (place / "run").exists() != wrong and done.stdout.count("nothing was trained") == wrong


def test_what_there_is_to_judge_by(place, capfd):
    shutil.rmtree(place / "hf")
    shutil.rmtree(place / "megatron")
    assert run(words(place)) == 2
    error = capfd.readouterr().err
    for said in ("was made from", "megatron/release", "no longer exist", "--verify-against", "--verify-first"):
        assert said in error
    (place / "again" / "release" / "mconv.json").unlink()
    assert run(words(place)) == 2 and "mconv did not make it" in capfd.readouterr().err
    other = make_llama(place / "other", max_position_embeddings=64, seed=1)
    assert run(words(place, "--verify-against", other)) == 1
    assert run(words(place, "--verify-against", place / "nowhere")) == 2
    assert not (place / "run").exists()
    right = make_llama(place / "right", max_position_embeddings=64)
    capfd.readouterr()
    assert run(words(place, "--verify-against", right)) == 0 and "PASS: right" in capfd.readouterr().out


def test_a_published_model_needs_no_verdict_and_a_trained_one_has_no_equal(place, capfd):
    assert run(words(place, load="hf")) == 0
    assert "nothing to verify" in capfd.readouterr().out
    assert run(words(place, load="run", save="next")) == 2
    assert "--resume to continue" in capfd.readouterr().err  # before anything is judged
    assert run(words(place, "--finetune", load="run", save="next")) == 2
    assert "the result of training" in capfd.readouterr().err and not (place / "next").exists()
    assert run(["meg2hf", str(place / "run"), "--out", str(place / "tuned")]) == 0
    capfd.readouterr()
    assert run(words(place, load="tuned", save="next")) == 0 and "PASS: run/iter_0000002" in capfd.readouterr().out, (
        "an export's source is the iteration"
    )


def test_a_run_that_goes_on(place, capfd):
    assert run(words(place)) == 0
    shutil.rmtree(place / "again")
    assert run(words(place, iters=3)) == 0
    assert "again no longer exists, and the run continues from its own checkpoint" in capfd.readouterr().out
    shutil.rmtree(place / "run")
    assert run(words(place)) == 2 and "again is not a folder" in capfd.readouterr().err


def test_verify_against_is_of_verify_first(place, capfd):
    argv = [word for word in words(place, "--verify-against", place / "hf") if word != "--verify-first"]
    assert run(argv) == 2 and "--verify-against is for --verify-first" in capfd.readouterr().err


@pytest.mark.parametrize("value", ["hf", [1], ["\0"], ["."], ["nowhere/at/all"]])
def test_a_manifest_that_names_no_folder(place, capfd, value):
    edit_json(place / "again" / "release" / "mconv.json", made_from=value)
    assert run(words(place)) == 2
    assert "Traceback" not in capfd.readouterr().err and not (place / "run").exists()
