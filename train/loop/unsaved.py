"""Warn about a run that saves too late, once its speed is known."""

from dataclasses import dataclass, field

from mconv.train.checkpoints.disk import saves
from mconv.train.config import TrainConfig
from mconv.train.logs.meter import clock

LONG = 300.0
"""Seconds without a checkpoint that are worth a line."""
OFTEN = 600.0
"""Seconds between checkpoints that the line proposes."""
STEPS = 3
"""Steps that tell the speed, after the first one, which is slower than the others."""


@dataclass(slots=True, kw_only=True)
class Unsaved:
    """A watch over the time until a run's first checkpoint, if that is also its last one."""

    end: int | None
    """The iteration at which the run saves for the first time; None where there is nothing to say."""
    seconds: list[float] = field(default_factory=list)

    def step(self, iteration: int, seconds: float) -> str | None:
        """Return a line after the step that tells the speed, if much work is at stake."""
        if self.end is None:
            return None
        self.seconds.append(seconds)
        if len(self.seconds) <= STEPS:
            return None
        each, end, self.end = sum(self.seconds[1:]) / STEPS, self.end, None
        if (left := each * (end - iteration)) <= LONG:
            return None
        every = max(1, int(float(f"{OFTEN / each:.2g}")))  # 2608 -> 2600
        return (
            f"warning: nothing is saved before iteration {end}, in about {clock(left)}: a crash before that loses all; "
            f"--save-interval {every} would save about every {clock(every * each)}"
        )


def unsaved(config: TrainConfig, *, iteration: int, iterations: int) -> Unsaved:
    """Return the watch over a run that goes on after `iteration`."""
    if config.save is None:  # the start has said so
        return Unsaved(end=None)
    planned = saves(config, iteration=iteration, iterations=iterations)
    return Unsaved(end=planned[0] if len(planned) == 1 else None)
