"""What is known of cards and of cloud instances."""

from dataclasses import dataclass

MEMORY = {
    "V100-16": 16, "V100-32": 32, "T4": 16, "A10G": 24, "L4": 24, "L40S": 48, "A100-40": 40, "A100-64": 64, "A100-80": 80,
    "H100": 80, "GH200": 96, "H200": 141, "B200": 180,
}  # fmt: skip
"""Card -> its memory in GB, as its maker gives it."""


@dataclass(frozen=True, slots=True)
class Instance:
    """A cloud instance."""

    gpus: int
    card: str
    efa: int
    """EFA devices."""


UNKNOWN = Instance(0, "", 0)
INSTANCES = {
    "p3dn.24xlarge": Instance(8, "V100-32", 1), "p4d.24xlarge": Instance(8, "A100-40", 4),
    "p4de.24xlarge": Instance(8, "A100-80", 4), "p5.48xlarge": Instance(8, "H100", 32),
    "p5e.48xlarge": Instance(8, "H200", 32), "p5en.48xlarge": Instance(8, "H200", 16),
    "p6-b200.48xlarge": Instance(8, "B200", 8), "g5.48xlarge": Instance(8, "A10G", 1),
    "g6.48xlarge": Instance(8, "L4", 1), "g6e.48xlarge": Instance(8, "L40S", 4),
}  # fmt: skip
"""Amazon's instance type -> its GPUs and EFA devices."""
