"""Progress: what, how much, how fast and how long on a terminal; nothing in a pipe. And a plan of 70B in a moment."""

import importlib.util
import os
import pty
import re
import subprocess
import sys
import time
from pathlib import Path

from mconv.cli.app import run

CODE = """
import time
from mconv.cli.terminal import progress
with progress(8_000_000, "hf2meg tiny", passes=2) as advance:
    for _ in range(4):
        advance(1_000_000); time.sleep(0.15)
"""


def on_terminal():
    """What the code writes to a stderr that is a terminal of 100 columns."""
    ours, theirs = pty.openpty()
    env = {**os.environ, "COLUMNS": "100", "TERM": "xterm-256color"}
    done = subprocess.Popen([sys.executable, "-c", CODE], stderr=theirs, stdout=subprocess.PIPE, env=env)
    os.close(theirs)
    shown = b""
    try:
        while part := os.read(ours, 65536):
            shown += part
    except OSError:  # Linux: the other end is closed
        pass
    assert done.wait() == 0 and done.stdout.read() == b""
    done.stdout.close()
    os.close(ours)
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown.decode())


def test_a_terminal_sees_bytes_rate_and_time_left():
    frames = [line for line in re.split(r"[\r\n]+", on_terminal()) if line.strip()]
    assert frames and all(frame.startswith("hf2meg tiny") for frame in frames)
    assert any(re.search(r"1\.5/4\.0 MB +[\d.]+ MB/s +0:00:\d\d left", frame) for frame in frames), frames[-3:]


def test_a_pipe_sees_nothing():
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, check=True)
    assert done.stdout == done.stderr == b""


def test_a_dry_run_of_70b_takes_a_moment(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("mconv.convert.engine.plan.shutil.disk_usage", lambda _: type("Usage", (), {"free": 1 << 50}))
    file = Path(__file__).parents[2] / "benchmarks" / "dry_run.py"
    spec = importlib.util.spec_from_file_location("bench_dry_run", file)
    bench = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(bench)
    folder = bench.fake(tmp_path / "hf")
    start = time.thread_time()  # of this work alone: not of threads that other tests have left
    assert run(["hf2meg", str(folder), "--tp", "8", "--pp", "8", "--out", str(tmp_path / "out"), "--dry-run"]) == 0
    assert time.thread_time() - start < 6, "seconds of work, type checks of the tests included"
    out = capsys.readouterr().out
    assert "68.98 billion" in out and "138.0 GB" in out and len(out.splitlines()) < 60
    assert sum(f.stat().st_blocks for f in folder.iterdir()) < 2000, "the fake takes no room"
