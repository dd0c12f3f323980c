"""The lock of a save folder, which is one folder for all ranks and belongs to one run at a time.

A lock keeps a second run out if the file system has locks. If it has none, the id of the run that began last is in the
folder, and an earlier run finds it there before it publishes a checkpoint.
"""

import contextlib
import fcntl
import json
import os
import secrets
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, TextIO

from mconv.errors import ConfigError
from mconv.train.megatron import collectives
from mconv.train.megatron.collectives import from_all_ranks

FILE = "run.lock"


@dataclass(frozen=True, slots=True)
class RunLock:
    """A run's hold on its folder."""

    root: Path
    run: dict[str, Any]

    def check(self) -> None:
        """Raise ConfigError if another run has taken the folder over."""
        if (now := _read(self.root)) != self.run:
            raise ConfigError(f"{self.root} has been taken over by another run ({described(now)}); this one ends")


@contextlib.contextmanager
def locked(root: Path) -> Iterator[RunLock]:
    """Hold a folder for one run; every rank calls it. Raises ConfigError on all of them if that cannot be."""
    with contextlib.ExitStack() as held:
        run = collectives.on_rank_0(lambda: _take(root, held))
        if bad := [f"rank {rank}: {why}" for rank, why in enumerate(from_all_ranks(_wrong(root, run))) if why]:
            raise ConfigError(f"save {root} must be one folder that all ranks share: {'; '.join(bad[:4])}")
        yield RunLock(root, run)


def _take(root: Path, held: contextlib.ExitStack) -> dict[str, Any]:
    """Lock the folder, until `held` closes, and put this run's name there."""
    run = {
        "run": secrets.token_hex(8), "host": socket.gethostname(), "pid": os.getpid(),
        "job": os.environ.get("SLURM_JOB_ID"), "since": f"{datetime.now():%Y-%m-%d %H:%M:%S}",
    }  # fmt: skip
    try:
        root.mkdir(parents=True, exist_ok=True)
        file: TextIO = held.enter_context((root / FILE).open("a"))
        _lock(file, root)
        file.truncate(0)
        file.write(json.dumps(run) + "\n")
        file.flush()
        os.fsync(file.fileno())
    except OSError as error:
        raise ConfigError(f"save {root} cannot be written to: {error.strerror or error}") from error
    return run


def _lock(file: TextIO, root: Path) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise ConfigError(
            f"{root}: another run is at work there ({described(_read(root))}); stop that one, or give another --save"
        ) from None
    except OSError:  # a file system without locks
        return


def _wrong(root: Path, run: dict[str, Any]) -> str | None:
    """Return what this rank cannot do with the folder that rank 0 has locked; None if nothing."""
    if _read(root) != run:
        return f"{socket.gethostname()} does not see what rank 0 writes there"
    return None if os.access(root, os.W_OK) else f"{socket.gethostname()} cannot write there"


def _read(root: Path) -> dict[str, Any]:
    """Return the run that the lock file names."""
    try:
        found = json.loads((root / FILE).read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def described(run: dict[str, Any]) -> str:
    """Return a run in words: host, process, job, start."""
    job = f", Slurm job {run['job']}" if run.get("job") else ""
    return f"on {run.get('host')}, process {run.get('pid')}{job}, since {run.get('since')}" if run else "unknown"
