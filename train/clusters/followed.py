"""A job that was submitted: what is known of it, and the commands of the cluster's client that follow it."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mconv.errors import ConfigError
from mconv.train.clusters import slurm
from mconv.train.clusters.job import Job
from mconv.train.logs.log import NAME as LOG

RECORD = "launch.json"
"""File beside a job's rendered ones, from which the job is followed."""
JOBS = "jobs"
"""File with the id of each submitted job on a line."""
RECENT = 5
"""Number of a run's newest jobs that are looked at: of a chain one runs, and one waits."""
JOB = re.compile(r"\d+(_\d+)?", re.ASCII)
COLUMNS = {"id": "%i", "state": "%T", "elapsed": "%M", "limit": "%l", "nodes": "%D", "where": "%R"}
"""What squeue tells of a job, and its format."""
LABEL = "training.kubeflow.org/job-name"
"""Label by which Kubeflow's pods name their job."""

RECORDED = ("target", "name", "save", "triggers", "output", "namespace", "kind")
"""Fields of a job that its record has."""

Commands = tuple[tuple[str, ...], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Followed:
    """A submitted job."""

    target: str
    name: str = ""
    save: str | None = None
    """Folder of the run, on the machine where it was rendered; None for a command."""
    triggers: str | None = None
    """Folder that the run watches for triggers, as its pods see it or on the machine; None for a command."""
    output: str | None = None
    """Folder of its output."""
    namespace: str = "default"
    kind: str = "pytorchjob"
    """Kind of the Kubernetes object."""
    jobs: tuple[str, ...] = ()
    """Slurm ids, the newest last."""

    @property
    def client(self) -> str:
        """Return the program that follows the job; "" for nodes without a scheduler."""
        return {"slurm": "squeue", "kubernetes": "kubectl"}.get(self.target, "")


def record(job: Job, target: str) -> str:
    """Return the text of a job's record."""
    kind = "pytorchjob" if job.values else "job"
    save = job.places.host(job.save) if job.values.get("save") else None
    found = Followed(
        target=target, name=job.name, save=save, triggers=_triggers(job, target),
        output=slurm.output(job) if target == "slurm" else None, namespace=job.cluster.namespace, kind=kind,
    )  # fmt: skip
    return json.dumps({name: getattr(found, name) for name in RECORDED}, indent=1) + "\n"


def _triggers(job: Job, target: str) -> str | None:
    """Return the folder of a run's triggers where it is touched: in a pod, or on the machine."""
    if not job.values:
        return None
    return job.triggers if target == "kubernetes" else job.places.host(job.triggers)


def follow(word: str) -> Followed:
    """Return the job that an id, the folder of its files or that of its run names. Raises ConfigError."""
    if JOB.fullmatch(word):
        return Followed(target="slurm", jobs=(word,))
    for folder in (Path(word), Path(word) / "launch"):
        if (folder / RECORD).is_file():
            ids = (folder / JOBS).read_text().split() if (folder / JOBS).is_file() else []
            return Followed(**_recorded(folder / RECORD), jobs=tuple(ids[-RECENT:]))
    raise ConfigError(f"{word} is neither the id of a Slurm job nor a folder with {RECORD}, which `mconv launch` writes")


def _recorded(file: Path) -> dict[str, Any]:
    try:
        values = json.loads(file.read_text())
        return {name: values[name] for name in RECORDED}
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{file} is not as `mconv launch` writes it ({error}); render the job again") from error


# ---- commands --------------------------------------------------------------------------------------------------------
def queue(job: Followed) -> tuple[str, ...]:
    """Return the command that lists Slurm's jobs of a run."""
    form = "|".join(COLUMNS.values())
    return ("squeue", "--noheader", f"--jobs={','.join(_ids(job))}", f"--format={form}")


def history(job: Followed) -> tuple[str, ...]:
    """Return the command that lists jobs that Slurm's queue has forgotten, where it keeps accounts."""
    form = "--format=JobID,State,Elapsed,Timelimit,NNodes,NodeList"
    return ("sacct", "--allocations", "--noheader", "--parsable2", f"--jobs={','.join(_ids(job))}", form)


def rows(text: str) -> list[dict[str, str]]:
    """Return the jobs that `queue` or `history` prints."""
    found = [line.strip().split("|", len(COLUMNS) - 1) for line in text.splitlines()]
    return [dict(zip(COLUMNS, row, strict=True)) for row in found if len(row) == len(COLUMNS)]


def stopping(job: Followed, states: Mapping[str, str], *, now: bool) -> Commands:
    """Return the commands that stop a job: those that wait are cancelled, then those that run save and stop.

    `states`: Slurm's state of each id that is in its queue. `now`: without saving.
    """
    if job.target == "kubernetes":
        saves = job.triggers and not now
        touch = ("exec", f"{job.name}-worker-0", "--", "touch", f"{job.triggers}/exit")
        return (_kubectl(job, *(touch if saves else ("delete", job.kind, job.name))),)
    waiting = [one for one, state in states.items() if state == "PENDING"]
    running = [one for one in states if one not in waiting]
    commands = [("scancel", *waiting)] if waiting else []
    commands += [("scancel", *([] if now else ["--signal=USR2"]), *running)] if running else []
    return tuple(commands)


def shown(job: Followed) -> Commands:
    """Return the commands that show a Kubernetes job and its pods."""
    label = LABEL if job.kind == "pytorchjob" else "job-name"
    return (_kubectl(job, "get", job.kind, job.name), _kubectl(job, "get", "pods", "-l", f"{label}={job.name}"))


def logs(job: Followed, *, follows: bool, lines: int) -> tuple[str, ...]:
    """Return the command that prints the end of a job's output. Raises ConfigError where there is none to read."""
    if job.target == "kubernetes":
        pod = f"pod/{job.name}-worker-0" if job.kind == "pytorchjob" else f"job/{job.name}"
        return _kubectl(job, "logs", *(["-f"] if follows else []), f"--tail={lines}", pod)
    if job.target != "slurm":
        raise ConfigError(
            f"{job.name} was started by hand: its output is where that was; the run's log: {job.save}/{LOG}"
        )
    return ("tail", *(["-F"] if follows else []), f"--lines={lines}", str(_output(job)))


def _output(job: Followed) -> Path:
    """Return the output of the newest job that has begun; of an array the one that was written to last."""
    for one in reversed(_ids(job)):
        found = [*Path(job.output or "").glob(f"{one}.out"), *Path(job.output or "").glob(f"{one}_*.out")]
        if found:
            return max(found, key=lambda file: file.stat().st_mtime)
    raise ConfigError(f"{job.output} has no output of {job.name} yet: `mconv launch status` says where its job stands")


def _kubectl(job: Followed, *words: str) -> tuple[str, ...]:
    return ("kubectl", "--namespace", job.namespace, *words)


def _ids(job: Followed) -> tuple[str, ...]:
    if not job.jobs:
        raise ConfigError(f"{job.name} was not submitted yet: submit it by `mconv launch slurm ... --submit`")
    return job.jobs
