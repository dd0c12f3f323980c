"""What a run leaves behind, and goes on from."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from mconv.train.config import rules


@dataclass(frozen=True, kw_only=True)
class Checkpoints:
    """Saving and resuming."""

    save: str | None = None
    """Folder for checkpoints and the log; a run that finds its own checkpoint there goes on from it."""
    save_interval: int = 0
    """Iterations between checkpoints; 0 saves at the end only."""

    @staticmethod
    def problems(config: Any) -> Iterator[str]:
        """Broken rules of this section."""
        yield from rules.not_negative(config, "save_interval")
        if (config.save_interval or config.exit_after) and config.save is None:
            yield "save_interval and exit_after need save, the folder for the checkpoints"
