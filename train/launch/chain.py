"""A run that fails before its first step: its queue of jobs would fail one by one, so it is told once."""

import contextlib
import os
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

from mconv.errors import MconvError
from mconv.train.config import TrainConfig
from mconv.train.launch.ranks import joined

STEPPED = "MCONV_STEPPED"
"""Names the file that a rank leaves once it has taken a step."""
PATIENCE = 120
"""Seconds that a command may take."""


def stepped() -> None:
    """A step was taken: whatever fails from now on is not the fault of the start."""
    if file := os.environ.get(STEPPED):
        Path(file).touch()


@contextlib.contextmanager
def guarded(config: TrainConfig) -> Iterator[None]:
    """If what is done inside fails before a step is taken, run `on_first_failure` and cancel `cancel_job`, once."""
    with tempfile.TemporaryDirectory(prefix="mconv-chain-") as folder:
        file = os.environ[STEPPED] = str(Path(folder) / "stepped")
        try:
            yield
        except Exception as error:
            wanted = config.on_first_failure or config.cancel_job
            if wanted and not Path(file).exists() and _ours(config):
                told = _tell(config, str(error))
                if told and isinstance(error, MconvError):
                    raise type(error)("\n".join([*filter(None, [str(error)]), *told])) from error
            raise
        finally:
            os.environ.pop(STEPPED, None)


def _ours(config: TrainConfig) -> bool:
    """Whether it is this process that tells: of ranks that fail together, the first one to leave its mark."""
    if not joined():
        return True
    job = os.environ.get("SLURM_JOB_ID") or os.environ.get("TORCHELASTIC_RUN_ID")
    if config.save is None or job is None:
        return os.environ["RANK"] == "0"
    mark = Path(config.save) / f".first-failure.{job}.{os.environ.get('SLURM_RESTART_COUNT', 0)}"
    try:
        mark.parent.mkdir(parents=True, exist_ok=True)
        mark.touch(exist_ok=False)
    except FileExistsError:
        return False
    except OSError:
        return os.environ["RANK"] == "0"
    return True


def _tell(config: TrainConfig, message: str) -> list[str]:
    """Run the commands; what to say of it."""
    commands: list[tuple[str, str | list[str]]] = []
    if config.on_first_failure:
        commands.append(("on_first_failure", config.on_first_failure))
    if config.cancel_job:
        commands.append((f"cancel_job {config.cancel_job}", ["scancel", *config.cancel_job.split(",")]))
    return [f"no step was taken; {name}: {_run(command, message)}" for name, command in commands]


def _run(command: str | list[str], message: str) -> str:
    """What came of one command. In a session of its own: it goes on when the launcher of the ranks ends this one."""
    try:
        done = subprocess.run(
            command, shell=isinstance(command, str), env={**os.environ, "MCONV_ERROR": message}, timeout=PATIENCE,
            start_new_session=True, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"failed: {error}"
    return "done" if done.returncode == 0 else f"exit code {done.returncode}: {done.stdout.strip()[-300:]}"
