"""A run goes on under another megatron-core than saved it, and back: where the venvs of both test runs are there."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jobs
import pytest

pytestmark = pytest.mark.once

ROOT = Path(__file__).parents[2]
VENVS = (".venv", ".venv-stack")


def other_python():
    """The other venv's interpreter, or the one that MCONV_OTHER_PYTHON names."""
    named = os.environ.get("MCONV_OTHER_PYTHON")
    places = [Path(named)] if named else [ROOT / venv / "bin" / "python" for venv in VENVS]
    return next((place for place in places if place.is_file() and place.parents[1] != Path(sys.prefix)), None)


def version(python):
    say = "from importlib.metadata import version; print(version('megatron-core'))"
    return subprocess.run([python, "-c", say], capture_output=True, text=True, check=True).stdout.strip()


def log(root):
    return [json.loads(line)["loss"] for line in (root / "train.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("more", [{}, {"distributed_optimizer": True, "bf16": True}], ids=["fp32", "bf16, shared"])
def test_a_run_goes_on_under_another_megatron_core_and_back(more, tmp_path):
    """Two steps here, two there, two here: the losses of the run that was never stopped."""
    if (python := other_python()) is None:
        pytest.skip(f"no interpreter of another megatron-core: neither {' nor '.join(VENVS)} beside this one")
    if version(python) == version(sys.executable):
        pytest.skip(f"{python} has the same megatron-core")
    run = jobs.fields(tmp_path, spec=jobs.SMALL, mock=True, train_iters=6, hidden_dropout=0.1, **more)
    save = {"save": str(tmp_path / "run")}
    whole = jobs.train(**run)["losses"]
    jobs.train(**run, **save, exit_after=2)
    given = {f"--{name.replace('_', '-')}": value for name, value in (run | save | {"exit_after": 4}).items()}
    flags = [word for flag, value in given.items() for word in ((flag,) if value is True else (flag, str(value)))]
    command = [str(python), "-m", "mconv", "train", *flags]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    jobs.train(**run, **save)
    assert log(tmp_path / "run") == pytest.approx(whole, abs=1e-6)
