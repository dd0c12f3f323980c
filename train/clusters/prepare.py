"""Make a job of what a user gives, and find all that would stop it on the cluster before it is submitted."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mconv.errors import ConfigError, refuse
from mconv.train.checkpoints.folders import check_folders
from mconv.train.clusters import limits, places, progress, read
from mconv.train.clusters.cluster import Cluster
from mconv.train.clusters.job import Job, name_of
from mconv.train.clusters.targets import TARGETS
from mconv.train.config import TrainConfig
from mconv.train.estimate import plan as plans
from mconv.train.estimate.fit import GB, Gpu
from mconv.train.estimate.units import duration

ARRAY = re.compile(r"\d+(-\d+)?(,\d+(-\d+)?)*", re.ASCII)
FOLDER = "launch"
"""Folder of a job's files, in the folder of its run, if no other is named."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """A run, or a command, that a user wants started on a cluster."""

    target: str
    cluster: Mapping[str, Any]
    values: Mapping[str, Any]
    """Fields of the run; empty for a command."""
    command: tuple[str, ...] = ()
    array: str | None = None
    """Numbers to run the command for, as Slurm writes them: 0-3,7."""
    folder: Path | None = None
    """Folder for the files."""


def cluster_of(wanted: Wanted) -> Cluster:
    """Return the cluster with what the target sets. Raises ConfigError on unknown fields and broken rules."""
    return read.make({**wanted.cluster, **TARGETS[wanted.target].sets})


def places_for(wanted: Wanted, cluster: Cluster, folder: Path | None = None) -> places.Places:
    """Return the places of a job, on the machine and in its container or pod."""
    return places.places_of(cluster, folder, mounted=TARGETS[wanted.target].mounted)


def job_of(wanted: Wanted, cluster: Cluster, *, iterations: int | None) -> Job:
    """Return the job. Raises ConfigError where its files have no folder, or its checkpoints would be lost."""
    folder = (wanted.folder or _folder(wanted, cluster)).absolute()
    found = Job(
        cluster=cluster, name=name_of(cluster, wanted.values, wanted.command), folder=folder,
        places=places_for(wanted, cluster, folder), values=wanted.values, command=wanted.command,
        numbers=numbers(wanted), iterations=iterations,
    )  # fmt: skip
    if cluster.nsys and wanted.values and wanted.values.get("profile_with") != "nsys":
        raise ConfigError("cluster.nsys records the steps that a run profiles: set profile (10-12) and profile_with nsys")
    if cluster.chain and wanted.values and not (iterations and wanted.values.get("save")):
        raise ConfigError("cluster.chain needs save and train_iters or train_samples: a chain ends where the run does")
    return found


def numbers(wanted: Wanted) -> tuple[int, ...]:
    """Return the numbers that a command runs for. Raises ConfigError on what is not a list of them, or has no use."""
    if wanted.array is None:
        return ()
    if not ARRAY.fullmatch(wanted.array):
        raise ConfigError(f"--array is {wanted.array!r}; it must be numbers such as 0-3,7")
    if not any("{}" in word for word in wanted.command):
        raise ConfigError("--array is for a --command with {}, where the number goes: 'mconv data dumps --dump {} ...'")
    ends = [[int(end) for end in part.split("-")] for part in wanted.array.split(",")]
    return tuple(dict.fromkeys(number for part in ends for number in range(part[0], part[-1] + 1)))


def _folder(wanted: Wanted, cluster: Cluster) -> Path:
    """Return the folder for the files of a run that saves."""
    if not (save := wanted.values.get("save")):
        raise ConfigError("nothing says where the job's files go: give --render DIR, or save to the run")
    if TARGETS[wanted.target].mounted:
        raise ConfigError("nothing says where the job's files go: give --render DIR")
    if (host := places_for(wanted, cluster).host(str(save))) is None:
        raise ConfigError(f"save is {save}, which no bind of the container holds; add HOST:CONTAINER to cluster.binds")
    return Path(host) / FOLDER


# ---- the plan --------------------------------------------------------------------------------------------------------
def planned(cluster: Cluster, config: TrainConfig, *, tokens_per_second: float | None) -> plans.RunPlan:
    """Return the plan of a run on the cluster. Raises ConfigError with all that would stop it there.

    `config`: the run, its paths as this machine finds them.
    """
    check_folders(config)
    world = cluster.nodes * cluster.ranks
    if tokens_per_second is None and config.save:
        tokens_per_second = progress.rate(Path(config.save), world)
    tflops = cluster.tflops if tokens_per_second is None else None
    made = plans.plan(config, world=world, tokens_per_second=tokens_per_second, tflops=tflops, cpu=not cluster.gpus)
    refuse(list(_problems(cluster, made)), doing=f"planning the run on {world} ranks", kind=ConfigError)
    return made


def _problems(cluster: Cluster, made: plans.RunPlan) -> Iterator[str]:
    """Yield what the plan itself allows and the cluster does not."""
    for nodes in cluster.sizes:
        if nodes != cluster.nodes:
            found = plans.problems(made.config, made.origin, made.seq_length, nodes * cluster.ranks)
            yield from (f"with {nodes} nodes: {problem}" for problem in found)
    if cluster.gpus and cluster.card_memory:
        yield from _memory(Gpu(round(cluster.card_memory * GB)), made)
    if (over := _over(cluster, made)) and not made.config.save:
        yield f"the run takes {duration(over)} and a job {cluster.time}; without save all of it would be lost"


def _memory(gpu: Gpu, made: plans.RunPlan) -> Iterator[str]:
    """Yield a problem if a rank does not fit its card."""
    fullest = max(made.ranks, key=lambda rank: rank.peak)
    if fullest.peak > gpu.usable:
        yield (
            f"stage {fullest.stage} needs {fullest.peak / GB:.1f} GB of the {gpu.usable / GB:.1f} GB that a card of "
            f"{gpu.memory / GB:g} GB leaves; `mconv plan --world-size {made.world} --gpu-memory {gpu.memory / GB:g}` "
            "says what would make it fit"
        )


def _left(made: plans.RunPlan) -> float | None:
    """Return the seconds of the steps that the run has left; None if nobody knows."""
    if made.pace is None or made.pace.seconds is None or made.iterations is None:
        return None
    done = int(progress.last_step(Path(made.config.save)).get("iteration", 0)) if made.config.save else 0
    return made.pace.seconds * max(0.0, 1 - done / made.iterations)


def _over(cluster: Cluster, made: plans.RunPlan) -> float | None:
    """Return the seconds that the run has left if they are more than a job's; None if not, or if nobody knows."""
    seconds = _left(made)
    return seconds if seconds and cluster.limit and seconds > cluster.limit else None


def notes(cluster: Cluster, made: plans.RunPlan) -> Iterator[str]:
    """Yield what the plan found, for the user."""
    yield (
        f"{made.origin.name}: {cluster.nodes} x {cluster.ranks} ranks: tp {made.layout.tp} x pp {made.layout.pp} x dp "
        f"{made.replicas}, {made.micro_batches} micro batches a step"
    )
    peak = max(rank.peak for rank in made.ranks) / GB
    if not cluster.gpus:
        yield f"memory: {peak:.1f} GB a rank"
    elif cluster.card_memory:
        yield f"memory: {peak:.1f} GB of each card's {cluster.card_memory:g} GB"
    else:
        yield f"memory: {peak:.1f} GB a rank, compared with nothing: give cluster.gpu or cluster.gpu_memory"
    if over := _over(cluster, made):
        jobs = -(-over // max(1, (cluster.limit or 0) - cluster.warning))
        how = "the chain queues them" if cluster.chain else "submit it again after each, or set cluster.chain"
        yield f"time: {duration(over)}, which is {jobs:.0f} jobs of {cluster.time}: {how}"
    elif left := _left(made):
        yield f"time: {duration(left)} of {limits.written(cluster.limit) if cluster.limit else 'no limit'}"
