"""What is wrong with a path is said before torch, transformers or megatron-core is imported."""

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import contextlib, io, sys

sys.modules.update(dict.fromkeys(("torch", "transformers", "megatron")))  # importing one of them fails
from mconv.cli.app import run

for line in sys.stdin.read().splitlines():
    with contextlib.redirect_stderr(io.StringIO()) as said:
        code = run(line.split())
    words = said.getvalue().strip().splitlines() or ["nothing was said"]
    print(code, line, f"TOO LATE: {words[-5:]}" if "Traceback" in said.getvalue() else "")
    print(*words, sep="\\n", file=sys.stderr)
"""
LINES = """\
hf2meg
hf2meg nothere
hf2meg ./nothere
hf2meg empty
hf2meg mega
reshard nothere
reshard empty
merge nothere
meg2hf nothere
meg2hf mega --iteration 7
meg2hf untracked
inspect nothere
inspect empty
inspect untracked
verify nothere
verify nothere empty
verify empty empty
push nothere
push empty you/model
push nothere you/model --dry-run
blend nothere other
blend nothere.yaml --out x
lora export nothere
lora merge nothere
lora merge mega --base nothere
lora extract nothere empty --rank 2
lora extract empty nothere --rank 2
diff nothere empty
diff empty empty
data tokenize nothere.jsonl --out x --tokenizer empty
data tokenize text.jsonl --out x --tokenizer nothere
data tokenize text.jsonl --out x --tokenizer empty
data tokenize text.jsonl --out empty --tokenizer empty
data instruct nothere.jsonl --out x --tokenizer empty
plot nothere
plot text.jsonl --out x.bmp
train nothere.yaml
train --load nothere --data x --lr 1 --train-iters 1
train --load empty --data x --lr 1 --train-iters 1
plan nothere.yaml
plan --load nothere
status nothere
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with an empty one, text, and Megatron roots that are not whole."""
    (tmp_path / "empty").mkdir()
    (tmp_path / "untracked" / "iter_0000005").mkdir(parents=True)
    (tmp_path / "mega" / "iter_0000005").mkdir(parents=True)
    (tmp_path / "mega" / "latest_checkpointed_iteration.txt").write_text("6")
    (tmp_path / "text.jsonl").write_text('{"text": "x"}\n')
    return tmp_path


def test_errors_about_paths_import_nothing_slow_and_leave_nothing(folder):
    before = sorted(folder.rglob("*"))
    done = subprocess.run([sys.executable, "-c", SCRIPT], input=LINES, capture_output=True, text=True, cwd=folder)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [f"2 {line} " for line in LINES.splitlines()], done.stderr
    assert sorted(folder.rglob("*")) == before
