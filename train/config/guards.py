"""What must hold for a run to begin and to go on."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from mconv.train.config import rules


@dataclass(frozen=True, kw_only=True)
class Guards:
    """Checks before and during a run."""

    verify_first: bool = False
    """Before anything is trained, judge `load` by what it was converted from; stop if they are not the same model."""
    verify_against: str | None = None
    """What `verify_first` judges `load` by, instead of its source: a checkpoint, or a repository in the cache."""
    on_nan: Literal["stop", "skip"] = "stop"
    """At a loss or gradient that is not finite: stop, or leave that step out."""
    spike_factor: float | None = None
    """A loss of more than this many times the median of the last `spike_window` is a spike; none is if not given."""
    spike_window: int = 32
    """Steps that a loss is compared with."""
    on_spike: Literal["warn", "skip", "stop"] = "warn"
    """At a spike: say so and go on, leave that step out, or stop."""
    max_skips: int = 10
    """Steps in a row that `on_nan` and `on_spike` may leave out before the run stops."""

    @staticmethod
    def problems(config: Any) -> Iterator[str]:
        """Broken rules of this section."""
        if config.verify_against is not None and not config.verify_first:
            yield "verify_against is for verify_first; give that too"
        yield from rules.at_least_1(config, "spike_window max_skips")
        yield from rules.each(config, "spike_factor", "more than 1", lambda factor: factor > 1)
        if config.on_spike != "warn" and config.spike_factor is None:
            yield f"on_spike is {config.on_spike}, but without spike_factor nothing is a spike"
