"""A Slurm job: its sbatch file, and what submits it."""

import os
from collections.abc import Iterator
from typing import Any

from mconv.train.clusters import containers, quoting
from mconv.train.clusters.job import Job, Rendered, shared_files
from mconv.train.clusters.limits import written

FILE = "job.sbatch"
PLAIN = (
    "account",
    "partition",
    "qos",
    "reservation",
    "constraint",
    "nodelist",
    "exclude",
    "time",
    "mem",
    "gres",
    "exclusive",
)
"""Fields that are options of sbatch by the same name."""


def render(job: Job) -> Rendered:
    """Return the files of a Slurm job. Raises ConfigError on a value that a line of sbatch cannot hold."""
    files = {FILE: _script(job), **shared_files(job)}
    files["submit.sh"] = quoting.render("submit.sh", {"job": job, "output": output(job), "files": [FILE]})
    return Rendered(files=files, submit=("bash", "submit.sh"), client="sbatch", notes=tuple(_notes(job)))


def output(job: Job) -> str:
    """Return the folder of the job's output, on the machine."""
    return os.path.normpath(os.path.join(job.chdir, job.cluster.output or f"{job.host_save}/slurm"))  # noqa: PTH118


def _script(job: Job) -> str:
    values = {
        "job": job, "cluster": job.cluster, "directives": quoting.Quoted("\n".join(_directives(job))),
        "srun": quoting.wrapped(_srun(job)),
    }  # fmt: skip
    return quoting.render("job.sbatch", values)


def _directives(job: Job) -> Iterator[str]:
    """Yield the #SBATCH lines."""
    cluster = job.cluster
    named = {name: getattr(cluster, name) for name in PLAIN}
    options: dict[str, Any] = {
        "--job-name": job.name, **{f"--{name}": value for name, value in named.items()},
        "--nodes": cluster.nodes if job.values else 1, "--ntasks-per-node": 1, "--cpus-per-task": cluster.cpus_per_task,
        "--gpus-per-node": (cluster.gpus or None) if cluster.gres is None and job.values else None,
        "--chdir": job.chdir, "--output": f"{quoting.folder_pattern(output(job))}/{'%A_%a' if job.numbers else '%j'}.out",
        "--array": ",".join(map(str, job.numbers)) or None,
        "--signal": f"USR2@{cluster.warning}" if job.values and cluster.limit and cluster.warning else None,
        "--requeue" if cluster.requeue else "--no-requeue": True,
        "--open-mode": "append" if cluster.requeue else None,
        "--wait-all-nodes": 1 if cluster.nodes > 1 and job.values else None,
    }  # fmt: skip
    yield from (
        quoting.sbatch(name, value) for name, value in options.items() if value is not None and value is not False
    )
    for option in cluster.sbatch_options or []:
        name, sign, value = option.partition("=")
        yield quoting.sbatch(name, value if sign else True)


def _srun(job: Job) -> list[Any]:
    """Return the words of the step: one task on each node, which is torch's agent there, or the job's command."""
    cluster = job.cluster
    cores = [f"--cpus-per-task={cluster.cpus_per_task}"] if cluster.cpus_per_task else []
    if not job.values:
        number = [quoting.Quoted('"$SLURM_ARRAY_TASK_ID"')] if job.numbers else []
        return ["srun", "--ntasks=1", *cores, *containers.command(job, [f"{job.shown}/node.sh", *number])]
    port = cluster.port or quoting.Quoted("$((20000 + SLURM_JOB_ID % 12000))")
    meet = quoting.Quoted(f'"${{hosts[0]}}:{port}"')
    where = [meet, quoting.Quoted('"$SLURM_JOB_ID"'), quoting.Quoted(f'{quoting.shell(job.save)}/debug/"$SLURM_JOB_ID"')]
    return ["srun", quoting.Quoted('"${resume[@]}"'), "--kill-on-bad-exit=1", "--label", "--ntasks-per-node=1", *cores,
            *containers.command(job, [f"{job.shown}/node.sh", *where])]  # fmt: skip


def _notes(job: Job) -> Iterator[str]:
    """Yield what a user should know before submitting."""
    cluster = job.cluster
    if not job.values or not cluster.limit:
        return
    if cluster.warning > cluster.limit / 4:
        after = written(cluster.limit - cluster.warning)
        yield f"signal_seconds {cluster.warning} of time {cluster.time}: the run saves and stops after {after}"
    if cluster.chain:
        cost = f"each of up to {cluster.nodes * cluster.limit / 3600:g} node hours"
        yield f"chain: jobs follow each other until iteration {job.iterations}, {cost}; `mconv launch stop` ends it"
