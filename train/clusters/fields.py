"""The fields of a `cluster:` section by subject, each with the rules that its values keep."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from mconv.train.clusters import cards
from mconv.train.clusters.limits import seconds
from mconv.train.config import rules
from mconv.train.logs import redact

SIZE = re.compile(r"\d+[kmgKMG]", re.ASCII)
VARIABLE = re.compile(r"[A-Za-z_]\w*", re.ASCII)
SHARED = {"pyxis": "image_file", "singularity": "image_file", "apptainer": "image_file", "enroot": "image_file",
          "docker": "image"}  # fmt: skip
"""Kind of container -> the field that names what it starts from."""


@dataclass(frozen=True, kw_only=True)
class Queue:
    """Queue: account, limits, and what follows the job."""

    job_name: str | None = None
    """Name of the job; that of the run's folder if not given. Jobs of a chain wait for all others of their name."""
    account: str | None = None
    """Account that pays for the job."""
    partition: str | None = None
    """Partition to run in, several with commas between."""
    qos: str | None = None
    """Quality of service."""
    reservation: str | None = None
    """Reservation to run in."""
    constraint: str | None = None
    """Features that the nodes must have."""
    nodelist: str | None = None
    """Nodes to run on, such as node[01-04]."""
    exclude: str | None = None
    """Nodes to leave out."""
    time: str | None = None
    """Time limit of a job: minutes, HH:MM:SS or D-HH:MM:SS."""
    signal_seconds: int | None = None
    """Seconds before the time limit at which Slurm sends SIGUSR2: the run saves and stops. 600, or half of a limit below
    1200, if not given; 0 sends none."""
    requeue: bool = False
    """Let Slurm put the job back into the queue after a node has failed; the run goes on from its last checkpoint."""
    chain: bool = False
    """Queue the next job whenever one starts, until the run has taken its last step. Each costs up to nodes x time. A job
    that takes no step ends the chain."""
    output: str | None = None
    """Folder for the output of jobs; `slurm` in the run's folder if not given."""
    sbatch_options: list[str] | None = None
    """Further options of sbatch, each as one word: --licenses=scratch."""

    @staticmethod
    def problems(config: Any) -> Iterator[str]:
        """Yield the broken rules of this section."""
        yield from rules.not_negative(config, "signal_seconds")
        limit = seconds(config.time) if config.time else None
        if config.time and limit is None:
            yield f"time is {config.time!r}; it must be minutes, HH:MM:SS or D-HH:MM:SS"
        if limit and (config.signal_seconds or 0) >= limit:
            yield f"signal_seconds {config.signal_seconds} is no less than time {config.time}: the job would stop at once"
        if config.chain and config.time is None:
            yield "chain needs time: a job without a limit has no successor to wait for it"
        for option in config.sbatch_options or []:
            if not option.startswith("-"):
                yield f"sbatch_options has {option!r}; each is an option of sbatch in one word, --name=value"


@dataclass(frozen=True, kw_only=True)
class Machines:
    """Machines: how many, and what each of them has."""

    nodes: int = 1
    """Number of nodes."""
    min_nodes: int | None = None
    """Least number of nodes with which the run goes on after one is lost (torchrun, Kubernetes); nodes if not given."""
    max_nodes: int | None = None
    """Number of nodes up to which the run grows (torchrun, Kubernetes); nodes if not given."""
    instance_type: str | None = None
    """Cloud instance type, such as p5.48xlarge; the GPUs and EFA devices of some are known."""
    gpus_per_node: int | None = None
    """GPUs of each node; those of instance_type if not given; 0 for ranks on the CPU."""
    ranks_per_node: int | None = None
    """Ranks on each node; gpus_per_node if not given."""
    gpu: str | None = None
    """Card, such as H100, whose memory the run must fit into; gpu_memory says it in figures."""
    gpu_memory: float | None = None
    """Memory of one GPU in GB (10^9 bytes). Without it and a known card, memory is not checked."""
    tflops: float | None = None
    """Measured TFLOP/s of each GPU, with which the run's time is compared with the limit."""
    efa_per_node: int | None = None
    """EFA devices of each node; those of instance_type if not given."""
    gres: str | None = None
    """Generic resources of each node as Slurm's --gres has them; if not given, --gpus-per-node asks for GPUs."""
    cpus_per_task: int | None = None
    """CPU cores for each node's ranks together."""
    mem: str | None = None
    """Memory of each node, such as 460G; 0 is all of it."""
    exclusive: bool = False
    """Share the nodes with no other job."""

    @staticmethod
    def problems(config: Any) -> Iterator[str]:
        """Yield the broken rules of this section."""
        yield from rules.at_least_1(config, "nodes min_nodes max_nodes ranks_per_node cpus_per_task")
        yield from rules.not_negative(config, "gpus_per_node efa_per_node")
        yield from rules.positive(config, "gpu_memory tflops")
        if not (config.min_nodes or config.nodes) <= config.nodes <= (config.max_nodes or config.nodes):
            yield f"nodes {config.nodes} is not between min_nodes {config.min_nodes} and max_nodes {config.max_nodes}"
        known = config.instance_type in cards.INSTANCES
        if config.gpus_per_node is None and not known:
            yield "gpus_per_node is not set: give the GPUs of a node, or 0 and ranks_per_node for ranks on the CPU"
        if config.gpus_per_node == 0 and config.ranks_per_node is None:
            yield "ranks_per_node is not set: with gpus_per_node 0 it says how many ranks a node has"
        if config.gpu is not None and config.gpu not in cards.MEMORY and config.gpu_memory is None:
            known_cards = ", ".join(cards.MEMORY)
            yield f"gpu is {config.gpu!r}, whose memory is not known: give gpu_memory, or one of {known_cards}"


@dataclass(frozen=True, kw_only=True)
class Container:
    """Container: the image, and what of the machine it sees."""

    container: Literal["none", "pyxis", "singularity", "apptainer", "enroot", "docker"] = "none"
    """What starts the container of a Slurm job; the targets docker, singularity, apptainer and enroot set it."""
    image: str | None = None
    """Image in a registry, such as nvcr.io/nvidia/pytorch:25.06-py3, or one that docker has built."""
    image_file: str | None = None
    """File of the image that pyxis and enroot (.sqsh) or singularity (.sif) start; `launch image` makes it."""
    binds: list[str] | None = None
    """Folders that the container sees, each as HOST:CONTAINER, or HOST:CONTAINER:ro to read only. Of a pod they only say
    where this machine has its volumes, so that the run can be planned."""
    workdir: str | None = None
    """Folder in the container that relative paths of the run begin at; that of the job if not given."""
    mount_home: bool = False
    """Let the container see your home (pyxis)."""
    shm_size: str = "128g"
    """Shared memory of a container (docker, Kubernetes), in k, m or g, which NCCL and data loaders need."""

    @staticmethod
    def problems(config: Any) -> Iterator[str]:
        """Yield the broken rules of this section."""
        yield from rules.each(config, "shm_size", "a number with k, m or g, such as 128g", SIZE.fullmatch)
        needed = SHARED.get(config.container)
        if needed and getattr(config, needed) is None:
            yield f"container is {config.container}, which starts {needed}; give that too"
        for bind in config.binds or []:
            if not re.fullmatch(r"[^:,]+:/[^:,]*(:(ro|rw))?", bind):
                yield f"binds has {bind!r}; each is HOST:CONTAINER or HOST:CONTAINER:ro, without commas"
        if config.binds and not any((config.image, config.image_file)):
            yield "binds are for a container; give image or image_file"


@dataclass(frozen=True, kw_only=True)
class Surroundings:
    """Surroundings: folder, modules, variables and how ranks meet."""

    chdir: str | None = None
    """Folder that the job runs in and that relative paths begin at; the current one if not given."""
    modules: list[str] | None = None
    """Modules to load before anything runs, outside of a container."""
    venv: str | None = None
    """Virtual environment to activate where the ranks run."""
    python: str = "python3"
    """Python that has mconv, where the ranks run."""
    env: dict[str, str] | None = None
    """Variables to set, their values taken literally: {NCCL_IB_HCA: mlx5}. Keys and tokens do not belong here: Slurm
    passes those of your shell on, Kubernetes has secret_env."""
    numactl: list[str] | None = None
    """Options of numactl, which then starts each node's ranks: --membind=0-3."""
    network_interface: str | None = None
    """Interface over which ranks meet, as NCCL_SOCKET_IFNAME names it; with EFA every one but the loopback."""
    hosts: list[str] | None = None
    """Names of the nodes, where no scheduler gives them; ranks meet at the first."""
    port: int | None = None
    """Port at which ranks meet; 29500 if not given, and one that follows from the job's id under Slurm."""
    max_restarts: int = 0
    """Times that ranks start again in the same job after one has died; they go on from the last checkpoint."""

    @staticmethod
    def problems(config: Any) -> Iterator[str]:
        """Yield the broken rules of this section."""
        yield from rules.not_negative(config, "max_restarts")
        yield from rules.each(config, "port", "from 1024 to 65535", lambda port: 1024 <= port < 1 << 16)
        yield from _variables("env", config.env)
        for name in config.env or {}:
            if redact.is_secret(name.upper()):
                yield f"env sets {name}, a secret in a file that runs share: set it in your shell, or by secret_env"


@dataclass(frozen=True, kw_only=True)
class Traces:
    """Traces: what a job leaves for finding faults."""

    nccl_debug: Literal["none", "WARN", "INFO", "TRACE"] = "none"
    """Level of NCCL's log, which each rank writes to a file in the job's debug folder, with its last collectives at a
    timeout."""
    nsys: bool = False
    """Record each rank with NVIDIA's nsys, into the job's debug folder, in the steps that the run profiles."""

    @staticmethod
    def problems(config: Any) -> Iterator[str]:
        """Yield nothing: every value of this section is allowed."""
        yield from ()


@dataclass(frozen=True, kw_only=True)
class Kubernetes:
    """Kubernetes: namespace, volumes and secrets."""

    namespace: str = "default"
    """Namespace of the job."""
    volumes: list[str] | None = None
    """Persistent volume claims, each as CLAIM:FOLDER, the folder being where pods see it."""
    secret_env: dict[str, str] | None = None
    """Variables from secrets, {WANDB_API_KEY: SECRET/KEY}."""
    service_account: str | None = None
    """Service account of the pods."""
    image_pull_policy: Literal["Always", "IfNotPresent", "Never"] = "IfNotPresent"
    """When nodes pull the image."""

    @staticmethod
    def problems(config: Any) -> Iterator[str]:
        """Yield the broken rules of this section."""
        yield from _variables("secret_env", config.secret_env)
        yield from (
            f"volumes has {one!r}; each is CLAIM:FOLDER, such as fsx-claim:/fsx"
            for one in config.volumes or [] if not re.fullmatch(r"[^:]+:/[^:]*", one)
        )  # fmt: skip
        yield from (
            f"secret_env has {name}: {one!r}; it is SECRET/KEY, such as wandb/api-key"
            for name, one in (config.secret_env or {}).items() if not re.fullmatch(r"[^/]+/[^/]+", one)
        )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Images:
    """Images: what `launch image` builds, and where it is pushed."""

    base_image: str = "nvcr.io/nvidia/pytorch:25.06-py3"
    """Image that mconv is installed into; what it has of torch stays as it is."""
    registry: str | None = None
    """Registry to push to; one of Amazon's ECR, ACCOUNT.dkr.ecr.REGION.amazonaws.com, is logged in to."""
    efa_installer: str | None = None
    """Version of Amazon's EFA installer to add, such as 1.43.2."""
    aws_ofi_nccl: str | None = None
    """Version of the aws-ofi-nccl plugin to build, such as 1.16.3, where the EFA installer brings none."""

    @staticmethod
    def problems(config: Any) -> Iterator[str]:
        """Yield the broken rules of this section."""
        yield from rules.each(config, "efa_installer aws_ofi_nccl", "a version, such as 1.43.2", VERSION.fullmatch)
        if config.aws_ofi_nccl and not config.efa_installer:
            yield "aws_ofi_nccl is built against the EFA installer's libfabric; give efa_installer too"


VERSION = re.compile(r"\d+(\.\d+)+", re.ASCII)
SECTIONS = (Queue, Machines, Container, Surroundings, Traces, Kubernetes, Images)
"""Sections in the order of a written file."""


def _variables(field: str, given: dict[str, str] | None) -> Iterator[str]:
    """Yield a problem for each name that no variable can have."""
    yield from (
        f"{field} has {name!r}, which is no name of a variable" for name in given or {} if not VARIABLE.fullmatch(name)
    )
