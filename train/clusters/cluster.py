"""A cluster: all that is a site's own, shared by the runs there, and what of it one job takes."""

from dataclasses import dataclass

from mconv.errors import ConfigError, refuse
from mconv.train.clusters import cards
from mconv.train.clusters.fields import SECTIONS, Container, Images, Kubernetes, Machines, Queue, Surroundings, Traces
from mconv.train.clusters.limits import seconds


@dataclass(frozen=True, kw_only=True)
class Cluster(Images, Kubernetes, Traces, Surroundings, Container, Machines, Queue):
    """A site, and what of it one job takes."""

    def __post_init__(self) -> None:
        bad = [problem for section in SECTIONS for problem in section.problems(self)]
        refuse([f"cluster.{problem}" for problem in bad], doing="reading the cluster", kind=ConfigError)

    @property
    def instance(self) -> cards.Instance:
        """Return what is known of the instance type; nothing for other machines."""
        return cards.INSTANCES.get(self.instance_type or "", cards.UNKNOWN)

    @property
    def gpus(self) -> int:
        """Return the GPUs of a node."""
        return self.instance.gpus if self.gpus_per_node is None else self.gpus_per_node

    @property
    def efa(self) -> int:
        """Return the EFA devices of a node."""
        return self.instance.efa if self.efa_per_node is None else self.efa_per_node

    @property
    def ranks(self) -> int:
        """Return the ranks of a node."""
        return self.ranks_per_node or self.gpus

    @property
    def sizes(self) -> range:
        """Return the numbers of nodes that the run may have."""
        return range(self.min_nodes or self.nodes, (self.max_nodes or self.nodes) + 1)

    @property
    def card_memory(self) -> float | None:
        """Return the memory of a card in GB, as far as it is known."""
        found = self.gpu_memory or cards.MEMORY.get(self.gpu or self.instance.card)
        return float(found) if found else None

    @property
    def warning(self) -> int:
        """Return the seconds before the limit at which a job is told; 0 if it is not."""
        return min(600, (self.limit or 0) // 2) if self.signal_seconds is None else self.signal_seconds

    @property
    def limit(self) -> int | None:
        """Return the seconds of the time limit."""
        return seconds(self.time) if self.time else None
