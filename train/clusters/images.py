"""The image that a cluster's containers start from: its Containerfile, and what builds, pushes and imports it."""

import re

from mconv.errors import ConfigError
from mconv.train.clusters import quoting
from mconv.train.clusters.cluster import Cluster
from mconv.train.clusters.job import Rendered

NAME = "mconv:latest"
"""Image that is built, if the cluster names none."""
SINGULARITY = ("singularity", "apptainer")
WORD = re.compile(r"[\w./:@-]+", re.ASCII)


def render(cluster: Cluster) -> Rendered:
    """Return the files of a cluster's image. Raises ConfigError on a base image that a Containerfile cannot name."""
    if not WORD.fullmatch(cluster.base_image):
        raise ConfigError(f"cluster.base_image is {cluster.base_image!r}; it must be REGISTRY/NAME:TAG")
    program = cluster.container if cluster.container in SINGULARITY else "singularity"
    squash = cluster.container not in SINGULARITY
    image = cluster.image or NAME
    values = {
        "cluster": cluster, "base": quoting.Quoted(cluster.base_image), "image": _local(cluster), 
        "file": cluster.image_file or ("mconv.sqsh" if squash else "mconv.sif"), "squash": squash,
        "program": quoting.Quoted(program), "prefix": quoting.Quoted(program.upper()),
        "reference": f"docker://{_enroot(image) if squash else image}",
    }  # fmt: skip
    files = {"Containerfile": quoting.render("Containerfile", values), "image.sh": quoting.render("image.sh", values)}
    return Rendered(files=files, notes=(_pull_line(cluster),))


def _local(cluster: Cluster) -> str:
    """Return the name that docker builds, without the registry."""
    name = cluster.image or NAME
    return name.removeprefix(f"{cluster.registry}/") if cluster.registry else name


def _enroot(image: str) -> str:
    """Return an image as enroot names it: a `#` after the registry, where there is one."""
    first, slash, rest = image.partition("/")
    return f"{first}#{rest}" if slash and ("." in first or ":" in first) else image


def _pull_line(cluster: Cluster) -> str:
    """Return the line that pulls on a node with network, for sites where login nodes may not."""
    asked = {"--account": cluster.account, "--partition": cluster.partition}
    given = [f"{name}={value}" for name, value in asked.items() if value]
    node = ["srun", "--time=04:00:00", "--nodes=1", "--ntasks=1", "--cpus-per-task=4"]
    line = [*node, *given, "--pty", "bash", "image.sh", "pull"]
    return f"on a node that reaches the registry: {quoting.shell(line)}"
