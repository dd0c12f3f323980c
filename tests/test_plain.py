"""`pip install mconv` alone, without an extra: what it can do, on Windows too as far as Linux tells, and what it says."""

import json
import subprocess
import sys

import elsewhere
import pytest
import tiny

from mconv.convert.folders import logbook

CONVERT = [
    "hf2meg hf --out meg --tp 2 --dry-run",
    "hf2meg hf --out meg --tp 2",
    "inspect meg",
    "verify hf meg --digests",
    "reshard meg --out mp --tp 1 --pp 2 --format mp_rank",
    "inspect mp",
    "merge mp --out one",
    "reshard one --out mp --tp 2 --overwrite",
    "meg2hf one --out back",
    "verify hf back --digests",
    "status .",
    "plan --load one --seq-length 32 --micro-batch-size 1 --global-batch-size 4",
]
SENTENCES = {
    "verify hf meg": "comparing what models compute needs megatron-core, transformers and psutil: pip install "
    "'mconv[train]'; --digests compares only tensors",
    "verify hf back --logits": "comparing what models compute needs transformers and psutil: pip install 'mconv[train]'; "
    "--digests compares only tensors",
    "train --load meg --data d --train-iters 1 --lr 1": "mconv train needs megatron-core and psutil: pip install "
    "'mconv[train]'",
    "data tokenize a.jsonl --out d --tokenizer hf": "mconv data needs transformers: pip install 'mconv[data]'",
    "inspect meg --plot meg.png": "--plot needs matplotlib: pip install 'mconv[plot]'",
    "demo --out demo": "the demo needs transformers, sentencepiece, protobuf, megatron-core and psutil: pip install "
    "'mconv[train]'",
}
"""Commands that need more, and what each says."""
COMMANDS = [line.split() for line in (*CONVERT, *SENTENCES)]


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    """Return exit code, output and errors of each command, and the folder that each round ran in."""
    root = tmp_path_factory.mktemp("plain")
    tiny.make_llama(root / "hf")
    for name in ("here", "windows"):
        (root / name).mkdir()
        (root / name / "hf").symlink_to(root / "hf")
        (root / name / "a.jsonl").write_text('{"text": "a"}\n')
    (root / "commands.json").write_text(json.dumps(COMMANDS))
    argv = [sys.executable, elsewhere.__file__, root / "commands.json", root]
    run = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    return {name: {" ".join(c): t for c, t in zip(COMMANDS, found, strict=True)} | {"folder": root / name}
            for name, found in json.loads(run.stdout).items()}  # fmt: skip


@pytest.mark.parametrize("line", CONVERT)
@pytest.mark.parametrize("system", ["here", "windows"])
def test_a_plain_install_converts(told, system, line):
    code, out, err = told[system][line]
    assert (code, "Traceback" in err) == (0, False), err
    assert (out and "SAME" in out) or "--digests" not in line


@pytest.mark.parametrize("line", SENTENCES)
@pytest.mark.parametrize("system", ["here", "windows"])
def test_what_needs_more_says_which_extra_brings_it(told, system, line):
    code, _, err = told[system][line]
    assert (code, err.strip().splitlines()[-1]) == (2, f"mconv: {SENTENCES[line]}")


def test_windows_writes_the_same_bytes(told):
    """Without pwrite, through descriptors that know text from bytes, and without syncing folders."""
    here, there = (
        {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file() and p.name != logbook.FILE}
        for folder in (told["here"]["folder"], told["windows"]["folder"])
    )
    assert here.keys() == there.keys() and len(here) > 20
    assert [name for name in here if here[name] != there[name]] == []
