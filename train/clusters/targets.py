"""Where a job can run: a target's name, how its files are rendered, and what of the cluster it sets."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from mconv.train.clusters import kubernetes, nodes, slurm
from mconv.train.clusters.job import Job, Rendered


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A way to start a job."""

    render: Callable[[Job], Rendered]
    sets: Mapping[str, Any] = field(default_factory=dict)
    """Fields of the cluster that the target implies."""
    mounted: str | None = None
    """Folder where pods see the job's files; None where jobs do not run in pods."""


TARGETS = {
    "slurm": Target(render=slurm.render),
    "kubernetes": Target(render=kubernetes.render, sets={"container": "none"}, mounted=kubernetes.MOUNTED),
    "torchrun": Target(render=nodes.render, sets={"container": "none"}),
    **{name: Target(render=nodes.render, sets={"container": name})
       for name in ("docker", "singularity", "apptainer", "enroot")},
}  # fmt: skip
"""Target -> how it is rendered."""
