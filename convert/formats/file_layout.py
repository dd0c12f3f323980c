"""Layout of a checkpoint's files before a byte of them is written, so that tensors can be written in any order."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Extent:
    """The place of a target's bytes: a file within the checkpoint's folder, and the offset in it."""

    file: str
    offset: int


@dataclass(frozen=True, slots=True, kw_only=True)
class FileLayout:
    """Every file that holds tensors, and where in it each of them lies."""

    extents: dict[str, Extent]
    """Extents by the key of the target."""
    sizes: dict[str, int]
    """Bytes of each file."""
    checksums: bool
    """True where the format stores a crc32 of each tensor."""
    finish: Callable[[Path, Mapping[str, int]], None]
    """Writes all that is not a tensor (headers, directories, index), given the crc32 of each target. Can be repeated."""

    def create(self, folder: Path) -> None:
        """Make the files at their full length. What is never written in them is zero."""
        for name, size in self.sizes.items():
            path = folder / name
            path.parent.mkdir(exist_ok=True)
            with path.open("xb") as file:
                file.truncate(size)
