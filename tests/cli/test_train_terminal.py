"""`mconv train` on a terminal: a line before anything slow, log lines above the bar, an answer to Ctrl-C."""

import os
import signal
import subprocess
import sys
import time

import jobs
import pytest
from tiny import make_llama

from mconv.cli.app import run
from mconv.train.launch import answer


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    tmp = tmp_path_factory.mktemp("terminal")
    make_llama(tmp / "hf", max_position_embeddings=64)
    jobs.train_data(tmp)
    return tmp


def words(place, **more):
    given = {"load": place / "hf", "data": place / "data", "save": place / "run", "lr": 1e-3, "seq-length": 16,
             "train-iters": 100000, "global-batch-size": 2, "micro-batch-size": 2, **more}  # fmt: skip
    return ["train", *(str(word) for name, value in given.items() for word in (f"--{name}", value))]


def test_what_a_signal_is_answered(monkeypatch, tmp_path):
    """By what the run is doing; the launcher reads it where rank 0 leaves it."""
    says = {
        ("start", 0): "stopping before the first step; Ctrl-C again stops now",
        ("step", 3): "finishing step 3, then saving; Ctrl-C again stops now and loses it",
        ("save", 3): "saving iteration 3, then stopping; Ctrl-C again stops now and loses it",
        ("end", 6): "finishing what follows the last step; the run is saved; Ctrl-C again stops now",
    }
    monkeypatch.setenv(answer.ASKED, str(tmp_path / "asked"))
    monkeypatch.setenv("RANK", "0")
    assert answer.activity(tmp_path / "asked") == ("start", 0)
    for now, line in says.items():
        answer.doing(*now)
        assert answer.activity(tmp_path / "asked") == now and answer.sentence(signal.SIGINT) == line
    answer.doing("step", 7)
    assert answer.sentence(signal.SIGUSR2) == "SIGUSR2: finishing step 7, then saving"
    assert answer.sentence(signal.SIGTERM, insist=False) == "SIGTERM: finishing step 7, then saving"


def test_a_thread_answers_while_the_main_thread_is_in_a_call():
    """A minute in one call: the first Ctrl-C is answered, the second one ends the process all the same."""
    code = """
import hashlib, os, signal, threading, time
from mconv.train.launch import answer, stop
answer.GRACE = 0.1
def press():
    for _ in range(2):
        time.sleep(0.3)
        os.kill(os.getpid(), signal.SIGINT)
with stop.listening(alone=True, answers=True):
    answer.doing("step", 5)
    threading.Thread(target=press).start()
    hashlib.pbkdf2_hmac("sha256", b"", b"", 100_000_000)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 130
    assert done.stderr.splitlines() == [
        "finishing step 5, then saving; Ctrl-C again stops now and loses it",
        "stopping now",
    ]


def test_without_a_folder_ctrl_c_says_that_nothing_is_saved(place, monkeypatch, capfd):
    def interrupted(*_, **__):
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(60)

    monkeypatch.setattr("mconv.train.launch.ranks.run", interrupted)
    argv = words(place)
    at = argv.index("--save")
    with pytest.raises(SystemExit, match="130"):
        sys.exit(run(argv[:at] + argv[at + 2 :]))
    assert "stopping now; nothing is saved: there is no --save" in capfd.readouterr().err
