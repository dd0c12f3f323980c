"""A bound on what packed files give: a small file must not fill the disk, or keep a machine busy for a year."""

import math
from dataclasses import dataclass
from pathlib import Path

from mconv.errors import FormatError

MAX_EXPAND = 1000.0
"""Bytes that a packed file may give for each of its own; text gives 3 to 20."""
FREE = 1 << 28
"""Bytes that any file may give."""


@dataclass(slots=True)
class Expansion:
    """The bytes that a file has given so far."""

    path: Path
    most: float
    given: int = 0

    @classmethod
    def of(cls, path: Path, ratio: float) -> "Expansion":
        """Return the bound of a file: `ratio` times its size."""
        return cls(path, max(float(FREE), ratio * path.stat().st_size) if path.is_file() else math.inf)

    def add(self, size: int) -> None:
        """Count bytes that were read. Raises FormatError where they are too many."""
        self.given += size
        self.check(self.given)

    def check(self, size: int) -> None:
        """Raise FormatError if a file that gives `size` bytes would give too many."""
        if size > self.most:
            raise FormatError(
                f"{self.path}: unpacks to more than {self.most / (1 << 20):,.0f} MiB from {self.path.stat().st_size:,} "
                "bytes, as a bomb does; raise --max-expand if that is meant"
            )
