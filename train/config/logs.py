"""What a run tells."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from mconv.train.config import rules


@dataclass(frozen=True, kw_only=True)
class Logs:
    """Lines, files and boards."""

    log_interval: int = 1
    """Iterations between printed lines; the log file has them all."""
    tensorboard_dir: str | None = None
    """Folder for TensorBoard event files."""

    @staticmethod
    def problems(config: Any) -> Iterator[str]:
        """Broken rules of this section."""
        yield from rules.at_least_1(config, "log_interval")
