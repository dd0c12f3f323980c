"""`mconv launch status`, `stop` and `logs`: a submitted job, followed by the cluster's own client."""

import json as jsonlib
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from mconv.cli import options as o
from mconv.errors import MconvError

if TYPE_CHECKING:
    from mconv.train.clusters.followed import Followed

FORGOTTEN = "Invalid job id"
"""What Slurm says of a job that it has forgotten."""
Now = Annotated[bool, Parameter(help="Stop at once, without saving.", negative=())]
Follow = Annotated[bool, Parameter(name=["--follow", "-f"], help="Go on printing what comes.", negative=())]
Lines = Annotated[int, Parameter(help="Lines from the end.")]


def status(job: str = ".", *, json: o.Json = False) -> None:
    """Show a job: its place in the queue, and where its run stands.

    Parameters
    ----------
    job
        The id of a Slurm job, the folder of a job's files, or that of its run. Default: this folder.
    """
    from mconv.train.clusters import followed, progress

    found = followed.follow(job)
    known = _queued(found) if found.target == "slurm" else []
    stands = [*progress.stands(Path(found.save))] if found.save else []
    if json:
        print(jsonlib.dumps({"target": found.target, "name": found.name, "jobs": known, "run": stands}, indent=1))
        return
    for one in known:
        print(f"job {one['id']}: " + ", ".join(one[name] for name in ("state", "elapsed", "where") if one.get(name)))
    if found.target == "kubernetes":
        for command in followed.shown(found):
            print(_said(command), end="")
    if found.save:
        print(f"run {found.save}: {', '.join(stands) or 'no step yet'}")


def stop(job: str = ".", *, now: Now = False) -> None:
    """Stop a job, and those that wait to follow it.

    Parameters
    ----------
    job
        The id of a Slurm job, the folder of a job's files, or that of its run. Default: this folder.
    """
    from mconv.train.clusters import followed

    found = followed.follow(job)
    if not found.client:
        _trigger(found)
        return
    known = {one["id"]: one["state"] for one in _queued(found)} if found.target == "slurm" else {}
    here = {one: state for one, state in known.items() if state in ALIVE}
    commands = followed.stopping(found, here, now=now)
    for command in commands:
        print(shlex.join(command), flush=True)
        print(_said(command), end="")
    if not commands:
        print(f"nothing is left to stop: {', '.join(f'job {one} is {state}' for one, state in known.items())}")
    elif not now:
        print("a run saves and stops after the step that it is in; --now ends it without")


ALIVE = ("PENDING", "RUNNING", "CONFIGURING", "COMPLETING", "SUSPENDED", "REQUEUED", "RESIZING")
"""States of Slurm in which there is something to stop."""


def logs(job: str = ".", *, follow: Follow = False, lines: Lines = 20) -> int:
    """Print the end of a job's output.

    Parameters
    ----------
    job
        The id of a Slurm job, the folder of a job's files, or that of its run. Default: this folder.
    """
    from mconv.train.clusters import followed

    found = followed.follow(job)
    if found.target == "slurm" and found.output is None:
        return _run(("tail", *(["-F"] if follow else []), f"--lines={lines}", _file_of(found.jobs[-1])))
    return _run(followed.logs(found, follows=follow, lines=lines))


def _queued(job: "Followed") -> list[dict[str, str]]:
    """Return what Slurm knows of each job, from its queue and, where it has forgotten them, from its accounts."""
    from mconv.train.clusters import followed

    found = [one for one in followed.rows(_said(followed.queue(job), unknown=FORGOTTEN)) if _names(one, job.jobs)]
    gone = [name for name in job.jobs if not any(_names(one, (name,)) for one in found)]
    if gone and shutil.which("sacct"):
        found += [one for one in followed.rows(_said(followed.history(job), unknown="")) if _names(one, gone)]
        gone = [name for name in gone if not any(_names(one, (name,)) for one in found)]
    return [*found, *({"id": name, "state": "not in the queue any more"} for name in gone)]


def _names(row: dict[str, str], jobs: Sequence[str]) -> bool:
    """Return whether a row is of one of the jobs, which an array has several rows of: 77_3 of 77."""
    return row["id"] in jobs or row["id"].partition("_")[0] in jobs


def _file_of(job: str) -> str:
    """Return the file of a job's output, as Slurm knows it."""
    found = re.search(r"^\s*StdOut=(.*)$", _said(("scontrol", "show", "job", job), unknown=FORGOTTEN), re.M)
    if found is None:
        raise MconvError(f"Slurm has forgotten job {job}; name the folder of its run instead")
    return found[1].replace("%j", job)


def _trigger(job: "Followed") -> None:
    """Ask a run that no scheduler knows to save and stop."""
    if job.triggers is None:
        raise MconvError(f"{job.name} was started by hand: stop it where it runs")
    folder = Path(job.triggers)
    if not folder.is_dir():
        raise MconvError(f"{folder} is not there: the run has not started, or its folder is not on this machine")
    (folder / "exit").touch()
    print(f"made {folder / 'exit'}: the run saves and stops after the step that it is in")


def _said(command: tuple[str, ...], *, unknown: str | None = None) -> str:
    """Return what a command of the cluster's client prints. Raises MconvError where it fails, or is not here.

    `unknown`: part of the message of a client that does not know the job, which is no failure; "" of any message.
    """
    _here(command)
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode and (unknown is None or unknown not in done.stderr):
        raise MconvError(f"{shlex.join(command)}: {(done.stderr or done.stdout).strip()}")
    return done.stdout


def _run(command: tuple[str, ...]) -> int:
    """Run a command that prints by itself, and return its exit code."""
    _here(command)
    sys.stdout.flush()
    return 2 if subprocess.run(command).returncode else 0


def _here(command: tuple[str, ...]) -> None:
    if shutil.which(command[0]) is None:
        raise MconvError(f"{command[0]} is not on this machine; on one that has it: {shlex.join(command)}")
