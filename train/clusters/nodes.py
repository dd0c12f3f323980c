"""Nodes without a scheduler: a script that starts a node's ranks, in a container or not, and the lines to paste."""

from collections.abc import Iterator

from mconv.errors import ConfigError
from mconv.train.clusters import containers, quoting
from mconv.train.clusters.job import Job, Rendered, shared_files


def render(job: Job) -> Rendered:
    """Return the files for nodes that a user logs in to. Raises ConfigError on a command for several numbers."""
    if job.numbers:
        raise ConfigError("--array is for schedulers, Slurm and Kubernetes: here run the command once for each number")
    where = [job.endpoint, job.name, f"{job.save}/debug/{job.name}"] if job.values else []
    values = {
        "job": job, "cluster": job.cluster, "debug": f"{job.host_save}/debug/{job.name}" if job.values else "",
        "start": quoting.wrapped(containers.command(job, [f"{job.shown}/node.sh", *where])),
    }  # fmt: skip
    files = {"start.sh": quoting.render("start.sh", values), **shared_files(job)}
    return Rendered(files=files, notes=tuple(_lines(job)))


def _lines(job: Job) -> Iterator[str]:
    """Yield the line to paste on each node."""
    line = f"bash {quoting.shell(str(job.folder / 'start.sh'))}"
    hosts = job.cluster.hosts or []
    yield from (f"on {host}: {line}" for host in hosts)
    if not hosts:
        yield f"on this node: {line}"
