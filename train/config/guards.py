"""What must hold for a run to begin and to go on."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from mconv.train.config import rules


@dataclass(frozen=True, kw_only=True)
class Guards:
    """Guards: checks before training, and reactions to NaN and loss spikes."""

    verify_first: bool = False
    """Before training, verify load against the model that it was converted from; stop if they differ."""
    verify_against: str | None = None
    """Reference for verify_first instead of the recorded source: a checkpoint, or a repository in the Hub's cache."""
    on_nan: Literal["stop", "skip"] = "stop"
    """At a loss or gradient that is not finite: stop, or skip that step."""
    spike_factor: float | None = None
    """A loss of more than this many times the median of the last spike_window losses is a spike. Not checked if not
    given."""
    spike_window: int = 32
    """Number of previous losses in the median of spike_factor."""
    on_spike: Literal["warn", "skip", "stop"] = "warn"
    """At a loss spike: warn and continue, skip that step, or stop."""
    max_skips: int = 10
    """Consecutive steps that on_nan and on_spike may skip before the run stops."""

    @staticmethod
    def problems(config: Any) -> Iterator[str]:
        """Yield the broken rules of this section."""
        if config.verify_against is not None and not config.verify_first:
            yield "verify_against is for verify_first; give that too"
        yield from rules.at_least_1(config, "spike_window max_skips")
        yield from rules.each(config, "spike_factor", "more than 1", lambda factor: factor > 1)
        if config.on_spike != "warn" and config.spike_factor is None:
            yield f"on_spike is {config.on_spike}, but without spike_factor nothing is a spike"
