"""When a run stops before its end."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from mconv.train.config import rules


@dataclass(frozen=True, kw_only=True)
class Stops:
    """Ways to stop early and in order."""

    exit_after: int | None = None
    """Save and stop after this iteration, as if the machine's time were up; the schedule is that of the whole run."""

    @staticmethod
    def problems(config: Any) -> Iterator[str]:
        """Broken rules of this section."""
        yield from rules.at_least_1(config, "exit_after")
