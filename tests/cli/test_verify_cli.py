"""`mconv verify` as a user runs it: it starts its own ranks, joins torchrun's, and its exit code is the verdict."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import save_file
from tiny import make_llama, tensors

from mconv.cli.app import run
from mconv.train.launch import ranks

pytestmark = pytest.mark.once


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """A LLaMA, its conversion to tp 2 x pp 2, and the conversion of the same with gate and up swapped in one layer."""
    tmp = tmp_path_factory.mktemp("verify")
    hf, wrong = make_llama(tmp / "hf"), make_llama(tmp / "wrong")
    changed = tensors(wrong)
    a, b = (f"model.layers.1.mlp.{name}_proj.weight" for name in ("gate", "up"))
    changed[a], changed[b] = changed[b], changed[a]
    save_file(changed, wrong / "model.safetensors", metadata={"format": "pt"})
    for source in (hf, wrong):
        assert run(["hf2meg", str(source), "--out", f"{source}-megatron", "--tp", "2", "--pp", "2"]) == 0
    return hf, Path(f"{hf}-megatron"), Path(f"{wrong}-megatron")


def test_it_starts_ranks_and_says_0_or_1(pair, capfd):
    hf, right, wrong = pair
    assert run(["verify", str(hf), str(right), "--length", "64", "--sequence-parallel"]) == 0
    said = capfd.readouterr()
    first, second, *rest = said.out.splitlines()
    assert first.startswith(
        "PASS: hf (transformers) against hf-megatron/release (megatron-core, tp 2 x pp 2 with sequence parallelism"
    )
    assert second.split(maxsplit=1) == ["layout", "recorded tp 2 x pp 2, proven there"] and not said.err
    assert rest[-1] == f"next: mconv train --load {right} --data DATA --save RUN"
    assert run(["verify", str(hf), str(wrong), "--length", "64", "--tp", "1", "--pp", "2"]) == 1
    out = capfd.readouterr().out
    assert out.startswith("FAIL") and "max error / scale" in out.splitlines()[-2] and "next:" not in out
    assert "recorded tp 2 x pp 2, proven at tp 1 x pp 2: --tp 2 --pp 2 proves it there" in out


def test_it_joins_the_ranks_of_torchrun(pair):
    hf, right, _ = pair
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "mconv"]
    argv = ["verify", str(hf), str(right), "--tp", "2", "--pp", "1", "--length", "32", "--json"]
    done = subprocess.run([*launch, *argv], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads(done.stdout)["tp"] == 2


def test_a_verdict_can_be_recorded(pair, capfd):
    hf, right, _ = pair
    assert run(["verify", str(hf), str(right), "--length", "32", "--record", "--json", "--tp", "1"]) == 0
    report = json.loads(capfd.readouterr().out)
    recorded = json.loads((right / "release" / "mconv.json").read_text())["verified"][-1]
    assert recorded["against"] == "hf" and recorded["max_abs_error"] == report["max_abs_error"] and recorded["passed"]


@pytest.mark.parametrize(
    "options, says",
    [
        (["--tp", "3"], "tp"),
        (["--length", "1"], "--length"),
        (["--batch", "0"], "--batch"),
        (["--sequence-parallel", "--tp", "1"], "give --tp 2 or more"),
        (["--record", "--length", "32"], "no mconv.json"),
    ],
)
def test_what_cannot_be_judged_is_2(pair, capfd, options, says, monkeypatch):
    """And no rank is started for it."""
    hf, right, _ = pair
    monkeypatch.setattr(ranks, "_launch", None)
    b = hf if "--record" in options else right
    assert run(["verify", str(hf), str(b), *options]) == 2
    error = capfd.readouterr().err
    assert error.startswith("mconv: ") and says in error and "Traceback" not in error


def test_an_unfinished_conversion_is_named_whatever_its_path_looks_like(tmp_path, capfd, monkeypatch):
    (tmp_path / "models" / ".mconv-partial-out").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert run(["verify", "models/out"]) == 2  # a name with one slash could be a repository's
    assert "models/out is an unfinished conversion" in capfd.readouterr().err


def test_a_path_that_is_not_there_is_refused_before_torch_is_imported(tmp_path):
    words = "['verify', 'nothing', 'nobody/nothing']"
    code = f"import sys; from mconv.cli.app import run; print(run({words}), 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, timeout=100)
    assert done.stdout.split() == ["2", "False"] and done.stderr.startswith("mconv: nothing is not a folder")
