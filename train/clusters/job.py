"""One job: what runs, on what, under which name, and the texts that all targets share."""

import hashlib
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mconv.errors import ConfigError
from mconv.train.clusters import quoting
from mconv.train.clusters.cluster import Cluster
from mconv.train.clusters.places import Places
from mconv.train.config import template

RUN = "run.yaml"
"""Name of the file with the run's fields, as they were when the job was rendered."""
PORT = 29500
EFA = {"FI_PROVIDER": "efa", "FI_EFA_USE_DEVICE_RDMA": "1", "FI_EFA_FORK_SAFE": "1", "NCCL_SOCKET_IFNAME": "^lo"}
"""Variables where nodes have Amazon's EFA."""
LEFT_OUT = ("nproc_per_node",)
"""Fields of a run that a launcher sets."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A run, or one other command, on the machines of a cluster."""

    cluster: Cluster
    name: str
    folder: Path
    """Folder of the rendered files, on the machine."""
    places: Places
    values: Mapping[str, Any] = field(default_factory=dict)
    """Fields of the run; empty for another command."""
    command: tuple[str, ...] = ()
    """What runs on one node instead of a run."""
    numbers: tuple[int, ...] = ()
    """Numbers for each of which the command runs once, {} in it being the number; empty where it runs once."""
    iterations: int | None = None
    """Steps of the whole run, where they are known."""

    @property
    def shown(self) -> str:
        """Return the folder of the rendered files as the ranks see it."""
        return self.places.seen(str(self.folder)) or str(self.folder)

    @property
    def save(self) -> str:
        """Return the folder of the run as the ranks see it; that of the rendered files if it saves nothing."""
        return self.places.inside(str(self.values["save"])) if self.values.get("save") else self.shown

    @property
    def host_save(self) -> str:
        """Return the folder of the run on the machine. Raises ConfigError if it would vanish with the container."""
        if (found := self.places.host(self.save)) is None:
            raise ConfigError(
                f"save is {self.save}, which no bind of the container holds: it would vanish with the container; add "
                "HOST:CONTAINER to cluster.binds"
            )
        return found

    @property
    def triggers(self) -> str:
        """Return the folder that the run watches for triggers, as the ranks see it."""
        named = self.values.get("trigger_dir")
        return self.places.inside(str(named)) if named else f"{self.save}/triggers"

    @property
    def chdir(self) -> str:
        """Return the folder that the job runs in, on the machine."""
        return os.path.normpath(Path.cwd() / (self.cluster.chdir or ""))

    @property
    def by_rank(self) -> bool:
        """Return whether something is set for each rank alone."""
        return bool(self.values) and (self.cluster.nccl_debug != "none" or self.cluster.nsys)

    @property
    def endpoint(self) -> str:
        """Return where ranks meet, where no scheduler gives the nodes. Raises ConfigError if nothing names the first."""
        if self.cluster.sizes.stop > 2 and not self.cluster.hosts:
            raise ConfigError("cluster.hosts is not set: name the nodes; ranks meet at the first of them")
        return f"{(self.cluster.hosts or ['localhost'])[0]}:{self.cluster.port or PORT}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Rendered:
    """The files of a job, and what is to be known of them."""

    files: Mapping[str, str]
    """Name -> text."""
    submit: tuple[str, ...] = ()
    """Command that submits them, run in their folder; empty where there is nothing to submit to."""
    client: str = ""
    """Program of the cluster that this command needs."""
    notes: tuple[str, ...] = ()
    """Sentences for the user: what to paste, what a chain costs."""


def name_of(cluster: Cluster, values: Mapping[str, Any], command: tuple[str, ...]) -> str:
    """Return a job's name: the cluster's, that of the run's folder, or the first words of its command.

    A chain's has a digest of the folder, too: jobs of one name wait for each other.
    """
    if cluster.job_name:
        return cluster.job_name
    save = str(values.get("save") or "run")
    words = "-".join(command[:3]) if command else Path(save).name
    name = re.sub(r"[^A-Za-z0-9]+", "-", words).strip("-").lower()[:40] or "run"
    own = hashlib.sha256(os.path.abspath(save).encode()).hexdigest()[:6]  # noqa: PTH100 (of a container, it may be)
    return f"{name}-{own}" if cluster.chain and values else name


def environment(job: Job) -> dict[str, str]:
    """Return the variables that a node starts with; the cluster's own win over what follows from the machines."""
    return {**(_of_ranks(job.cluster) if job.values else {}), **(job.cluster.env or {})}


def _of_ranks(cluster: Cluster) -> dict[str, str]:
    """Return the variables of ranks that follow from the machines."""
    found: dict[str, str] = {}
    if cluster.gpus:
        found |= {"CUDA_DEVICE_MAX_CONNECTIONS": "1", "PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True",
                  "TORCH_NCCL_ASYNC_ERROR_HANDLING": "1"}  # fmt: skip
    if cluster.cpus_per_task:
        found["OMP_NUM_THREADS"] = str(max(1, cluster.cpus_per_task // cluster.ranks))
    if cluster.max_restarts or len(cluster.sizes) > 1:
        found["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"  # else new ranks look for the dead (pytorch/pytorch#135712)
    if cluster.efa:
        found |= EFA
    if cluster.network_interface:
        found |= dict.fromkeys(("NCCL_SOCKET_IFNAME", "GLOO_SOCKET_IFNAME"), cluster.network_interface)
    if cluster.nccl_debug != "none":
        found |= {"NCCL_DEBUG": cluster.nccl_debug, "TORCH_NCCL_TRACE_BUFFER_SIZE": "20000",
                  "TORCH_NCCL_DUMP_ON_TIMEOUT": "1"}  # fmt: skip
    return found


def shared_files(job: Job) -> dict[str, str]:
    """Return the files of every target: what a node runs, what a rank runs, and the run."""
    values = {"job": job, "cluster": job.cluster, "environment": environment(job), "run": f"{job.shown}/{RUN}",
              "start": _train(job) if job.values else _command(job)}  # fmt: skip
    files = {"node.sh": quoting.render("node.sh", values)}
    if job.by_rank:
        files["rank.sh"] = quoting.render("rank.sh", values)
    if job.values:
        files[RUN] = run_file(job)
    return files


def run_file(job: Job) -> str:
    """Return the run's fields as YAML."""
    given = {name: value for name, value in job.values.items() if value is not None and name not in LEFT_OUT}
    lines = [f"{name}: {template.as_yaml(value)}" for name, value in given.items()]
    return "# The run, as it was when the job was rendered.\n" + "\n".join(lines) + "\n"


def _command(job: Job) -> quoting.Quoted:
    """Return the line that runs a command, its {} being the script's first argument where it runs for several numbers."""
    if not job.numbers:
        return quoting.wrapped(["exec", *job.command])
    parts = [[quoting.shell(part) if part else "" for part in word.split("{}")] for word in job.command]
    return quoting.wrapped(["exec", *(quoting.Quoted('"$1"'.join(found) or "''") for found in parts)])


def _train(job: Job) -> quoting.Quoted:
    """Return the lines that start a node's ranks under torch's agent."""
    cluster, sizes = job.cluster, job.cluster.sizes
    nodes = f"{sizes.start}:{sizes[-1]}" if len(sizes) > 1 else str(cluster.nodes)
    agent = [cluster.python, "-m", "torch.distributed.run", f"--nnodes={nodes}", f"--nproc-per-node={cluster.ranks}",
             f"--max-restarts={cluster.max_restarts}", "--rdzv-backend=c10d",
             quoting.Quoted('--rdzv-endpoint="$endpoint"'),
             quoting.Quoted('--rdzv-id="$id"')]  # fmt: skip
    ranks = ["--no-python", "bash", f"{job.shown}/rank.sh", quoting.Quoted('"$debug"')] if job.by_rank else [
        "-m", "mconv", "train", f"{job.shown}/{RUN}"]  # fmt: skip
    numactl = ["numactl", *cluster.numactl] if cluster.numactl else []
    return quoting.wrapped(["exec", *numactl, *agent, *ranks])
