"""A conversion that is killed at any moment, and one that is shared out to several ranks."""

import subprocess
import sys
from pathlib import Path

import pytest

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
    "plant, says", [("vouch-early", "not that of an unbroken run"), ("tracker-first", "neither the old")]
)
def test_the_kills_would_show_a_fault(tmp_path, plant, says):
    done = kill(tmp_path, "--kills", "12", "--plant", plant)
    assert done.returncode == 1 and says in done.stdout
