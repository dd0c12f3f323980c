"""What must hold for a run to begin and to go on."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Guards:
    """Checks before and during a run."""

    verify_first: bool = False
    """Before anything is trained, judge `load` by what it was converted from; stop if they are not the same model."""
    verify_against: str | None = None
    """What `verify_first` judges `load` by, instead of its source: a checkpoint, or a repository in the cache."""

    @staticmethod
    def problems(config: Any) -> Iterator[str]:
        """Broken rules of this section."""
        if config.verify_against is not None and not config.verify_first:
            yield "verify_against is for verify_first; give that too"
