"""React once to a run that fails before its first step: its queue of jobs would fail one by one."""

import contextlib
import os
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mconv.errors import MconvError
from mconv.train.config.checkpoints import JOBS
from mconv.train.launch.ranks import joined

STEPPED = "MCONV_STEPPED"
"""Names the file that a rank leaves once it has taken a step."""
MARK = "MCONV_JOB_MARK"
"""Names the file in which rank 0 notes for a job's script that a step was taken, and then why the run stopped."""
PATIENCE = 120
"""Seconds that a command may take."""


def stepped() -> None:
    """Note that a step was taken: whatever fails from now on is not the fault of the start."""
    if file := os.environ.get(STEPPED):
        with contextlib.suppress(FileNotFoundError):  # the command that asked is over
            Path(file).touch()
    _mark("", again=False)


def stopped(why: str | None) -> None:
    """Note why a run stopped before its last step."""
    if why:
        _mark(why, again=True)


def _mark(text: str, *, again: bool) -> None:
    """Leave a text for the job's script; only where there is none yet unless `again`."""
    file = os.environ.get(MARK)
    if file and os.environ.get("RANK", "0") == "0" and (again or not Path(file).exists()):
        with contextlib.suppress(OSError):  # a full disk stops no run
            Path(file).write_text(text)


@dataclass(frozen=True, slots=True, kw_only=True)
class Queue:
    """Who is told of a run that fails at its start, and where it would save."""

    on_first_failure: str | None = None
    cancel_job: str | None = None
    save: str | None = None


def queue_of(values: Mapping[str, Any]) -> Queue:
    """Return what a configuration says of the queue, whatever else is wrong in it: the next job would have it too."""
    said = {name: str(values[name]) for name in ("on_first_failure", "cancel_job", "save") if values.get(name)}
    if not JOBS.fullmatch(said.get("cancel_job", "0")):
        del said["cancel_job"]
    return Queue(**said)


@contextlib.contextmanager
def guarded(queue: Queue) -> Iterator[None]:
    """Run `on_first_failure` and cancel `cancel_job`, once, if the body fails before a step is taken."""
    with tempfile.TemporaryDirectory(prefix="mconv-chain-") as folder:
        file = os.environ[STEPPED] = str(Path(folder) / "stepped")
        try:
            yield
        except Exception as error:
            wanted = queue.on_first_failure or queue.cancel_job
            if wanted and not Path(file).exists() and _ours(queue):
                told = _tell(queue, str(error))
                if told and isinstance(error, MconvError):
                    raise type(error)("\n".join([*filter(None, [str(error)]), *told])) from error
            raise
        finally:
            os.environ.pop(STEPPED, None)


def _ours(queue: Queue) -> bool:
    """Return whether this process reports: of ranks that fail together, the first one to leave its mark."""
    if not joined():
        return True
    job = os.environ.get("SLURM_JOB_ID") or os.environ.get("TORCHELASTIC_RUN_ID")
    if queue.save is None or job is None:
        return os.environ["RANK"] == "0"
    mark = Path(queue.save) / f".first-failure.{job}.{os.environ.get('SLURM_RESTART_COUNT', 0)}"
    try:
        mark.parent.mkdir(parents=True, exist_ok=True)
        mark.touch(exist_ok=False)
    except FileExistsError:
        return False
    except OSError:
        return os.environ["RANK"] == "0"
    return True


def _tell(queue: Queue, message: str) -> list[str]:
    """Run the commands; what to say of it."""
    commands: list[tuple[str, str | list[str]]] = []
    if queue.on_first_failure:
        commands.append(("on_first_failure", queue.on_first_failure))
    if queue.cancel_job:
        commands.append((f"cancel_job {queue.cancel_job}", ["scancel", *queue.cancel_job.split(",")]))
    return [f"no step was taken; {name}: {_run(command, message)}" for name, command in commands]


def _run(command: str | list[str], message: str) -> str:
    """Run one command and return its outcome; in its own session, since the launcher may end this one meanwhile."""
    try:
        done = subprocess.run(
            command, shell=isinstance(command, str), env={**os.environ, "MCONV_ERROR": message}, timeout=PATIENCE,
            start_new_session=True, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"failed: {error}"
    return "done" if done.returncode == 0 else f"exit code {done.returncode}: {done.stdout.strip()[-300:]}"
