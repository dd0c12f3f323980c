"""The commands as a user types them."""

import json
import subprocess
import sys

import jobs
import pytest

pytestmark = pytest.mark.once


def mconv(*words):
    return subprocess.run([sys.executable, "-m", "mconv", *map(str, words)], capture_output=True, text=True)


def test_tokenize_train_and_resume(tmp_path):
    jobs.hf_folder(tmp_path / "hf", jobs.SPEC)
    jobs.tokenizer_folder(tmp_path / "hf", jobs.texts())
    lines = [json.dumps({"body": text}) for text in jobs.texts()]
    (tmp_path / "text.jsonl").write_text("\n".join(lines))
    data = tmp_path / "data" / "text"
    made = mconv(
        "data", "tokenize", tmp_path / "text.jsonl", "--tokenizer", tmp_path / "hf", "--prefix", data, "--key", "body"
    )
    assert made.returncode == 0 and f"{len(lines)} documents" in made.stdout, made
    (tmp_path / "run.yaml").write_text(
        f"load: {tmp_path / 'hf'}\ndata: {data}\nsave: {tmp_path / 'run'}\ntrain_iters: 6\nlr: 1e-2\nseq_length: 32\n"
    )
    first = mconv("train", tmp_path / "run.yaml", "--tp", 2, "--sequence-parallel", "--exit-after", 3)
    assert first.returncode == 0, first.stderr
    assert "2 ranks: tp 2 x pp 1 x dp 1; seq_length 32; iteration 0 of 6" in first.stdout
    assert first.stdout.count("| lm loss: ") == 3 and first.stdout.endswith("iter_0000003\n") and first.stderr == ""
    second = mconv("train", tmp_path / "run.yaml")
    assert second.returncode == 0 and "resuming from run/iter_0000003" in second.stdout, second
    assert second.stderr == ""
    steps = [json.loads(line) for line in (tmp_path / "run" / "train.jsonl").read_text().splitlines()]
    assert [step["iteration"] for step in steps] == [1, 2, 3, 4, 5, 6] and steps[5]["loss"] < steps[0]["loss"] - 0.3
    kept = {path.name for path in (tmp_path / "run" / "iter_0000006" / "hf").iterdir()}
    assert {"config.json", "tokenizer.json"} <= kept

    refused = mconv("train", tmp_path / "run.yaml", "--tp", 3, "--train-iters", 9)
    assert refused.returncode == 2 and "Traceback" not in refused.stderr, refused
    assert "padded vocabulary 256 is not a multiple of --tp 3" in refused.stderr
