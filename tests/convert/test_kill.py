"""A conversion that is killed at any moment, and one that is shared out to several ranks."""

import contextlib
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tiny import make_llama

from mconv.cli.app import run

ROOT = Path(__file__).parents[2]


def kill(tmp_path, *words):
    command = [sys.executable, "-W", "ignore", str(ROOT / "benchmarks/kill.py"), "--model", "tiny", "--no-sync"]
    return subprocess.run([*command, "--folder", str(tmp_path), *words], capture_output=True, text=True)


def test_sixty_kills_leave_nothing_wrong_and_resuming_ends_byte_for_byte(tmp_path):
    done = kill(tmp_path, "--kills", "60")
    assert done.returncode == 0, done.stdout + done.stderr
    kills = int(done.stdout.splitlines()[-1].split()[0])
    assert kills >= 60 and done.stdout.endswith("0 wrong\n") and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "plant, says", [("vouch-early", "a resumed run was refused"), ("tracker-first", "neither the old")]
)
def test_the_kills_would_show_a_fault(tmp_path, plant, says):
    done = kill(tmp_path, "--kills", "12", "--plant", plant)
    assert done.returncode == 1 and says in done.stdout


# ---- several ranks ---------------------------------------------------------------------------------------------------
RANK = """
import os, sys
os.environ.update(RANK=sys.argv[1], WORLD_SIZE="2", LOCAL_WORLD_SIZE="2", MASTER_ADDR="127.0.0.1",
                  GLOO_SOCKET_IFNAME="lo")
from mconv.cli.app import run
from mconv.convert.engine import rewrite, stream
from mconv.convert.engine.ranks import joined

codes = []
real = rewrite.stream
for port, line in zip(sys.argv[2].split(","), sys.argv[3:], strict=True):
    os.environ["MASTER_PORT"] = port
    fault, _, line = line.partition(":")
    done = 0
    def streaming(task, *rest):
        global done
        done += 1
        if fault == f"fail{sys.argv[1]}" and done == 3:
            raise OSError(28, "No space left on device")
        return real(task, *rest)
    rewrite.stream = streaming
    codes.append(run(line.replace("@", sys.argv[1].replace("0", "")).split()))  # the folder hf1 is not there
print("CODES", codes)
"""


def two_ranks(tmp_path, *lines):
    """Both ranks' exit codes, and what each printed; every line is a conversion that meets at a port of its own."""
    with contextlib.ExitStack() as stack:
        free = [stack.enter_context(socket.socket()) for _ in lines]
        for one in free:
            one.bind(("127.0.0.1", 0))
        ports = ",".join(str(one.getsockname()[1]) for one in free)
    command = [sys.executable, "-W", "ignore", "-c", RANK]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "cwd": tmp_path}
    ranks = [subprocess.Popen([*command, str(rank), ports, *lines], **pipes) for rank in range(2)]
    return answers(ranks)


def answers(ranks, timeout=120):
    """What each process printed; none outlives this, whatever happens."""
    try:
        return [rank.communicate(timeout=timeout) for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
            rank.communicate()


def test_ranks_that_hang_do_not_outlive_their_test():
    command = [sys.executable, "-c", "import time; time.sleep(60)"]
    ranks = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    with pytest.raises(subprocess.TimeoutExpired):
        answers(ranks, timeout=0.1)
    assert all(rank.poll() is not None for rank in ranks)


def test_two_ranks_make_the_bytes_of_one_and_fail_together(tmp_path, capsys):
    make_llama(tmp_path / "hf", num_hidden_layers=3, dtype=torch.bfloat16)
    for name, format in (("one", "mp_rank"), ("dist", "torch_dist")):
        assert run(["hf2meg", f"{tmp_path}/hf", "--out", f"{tmp_path}/{name}", "--format", format, "--tp", "2"]) == 0
    one, dist = capsys.readouterr().out.replace(f"{tmp_path}/", "").splitlines()[::3]
    lines = ["fail1:hf2meg hf --out bad --format mp_rank --tp 2", "none:hf2meg hf --out two --format mp_rank --tp 2",
             "fail0:hf2meg hf --out bad --format mp_rank", "none:hf2meg hf --out dist2 --format torch_dist --tp 2",
             "none:hf2meg hf --out two --tp 3", "none:hf2meg hf@ --out three"]  # fmt: skip
    (out0, err0), (out1, err1) = two_ranks(tmp_path, *lines)
    assert out0.splitlines()[-1] == "CODES [2, 0, 2, 0, 2, 2]" == out1.splitlines()[-1], err0 + err1
    assert out1.splitlines() == ["CODES [2, 0, 2, 0, 2, 2]"] and not err1
    assert one.replace("one", "two", 1) in out0 and dist.replace("dist", "dist2", 1) in out0
    assert "tp can be 1, 2, 4" in err0 and "rank 1:" in err0.splitlines()[-1] and "hf1" in err0.splitlines()[-1]
    assert "rank 1: could not write" in err0 and err0.count("No space left") == 2 and "Traceback" not in err0
    assert not (tmp_path / "bad").exists() and not list(tmp_path.rglob(".mconv-*"))
    for name, other in (("one", "two"), ("dist", "dist2")):
        assert files(tmp_path / name) == files(tmp_path / other)


def files(root):
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}
