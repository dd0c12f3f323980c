"""When a run stops before its end."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from mconv.train.config import rules

JOBS = re.compile(r"\d+(_\d+)?(,\d+(_\d+)?)*")


@dataclass(frozen=True, kw_only=True)
class Stops:
    """Stops: ways to save and stop before the end; the same command continues the run."""

    exit_after: int | None = None
    """Save and stop after this iteration; the schedule stays that of the whole run."""
    exit_interval: int | None = None
    """Save and stop at the next iteration that is a multiple of this."""
    exit_duration_in_mins: float | None = None
    """Save and stop after this many minutes, loading included."""
    stop_before_limit: float = 5.0
    """Save and stop this many minutes before a Slurm job's time limit, or halfway through a limit shorter than twice
    that; 0 ignores the limit."""
    trigger_dir: str | None = None
    """Folder to watch: a file named `save` in it makes the run save, one named `exit` makes it save and stop. `triggers`
    in the save folder if not given."""
    on_first_failure: str | None = None
    """Command to run once if the run fails before its first step, so that a queue of jobs does not fail one by one."""
    cancel_job: str | None = None
    """Slurm job ids, separated by commas, to cancel if the run fails before its first step."""

    @staticmethod
    def problems(config: Any) -> Iterator[str]:
        """Yield the broken rules of this section."""
        yield from rules.at_least_1(config, "exit_after exit_interval")
        yield from rules.each(config, "exit_duration_in_mins", "more than 0", lambda value: value > 0)
        yield from rules.not_negative(config, "stop_before_limit")
        yield from rules.each(config, "cancel_job", "job ids with commas between", JOBS.fullmatch)
        for name in ("exit_interval", "exit_duration_in_mins", "trigger_dir"):
            if getattr(config, name) is not None and config.save is None:
                yield f"{name} needs save, the folder for the checkpoints"
