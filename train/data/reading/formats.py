"""The formats that records are read from, by suffix."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from mconv import extras
from mconv.train.data.reading import lines, tables
from mconv.train.data.reading.batch import Batch
from mconv.train.data.reading.packed import PACKAGES, without_packing


@dataclass(frozen=True, slots=True)
class Format:
    """A format of files."""

    batches: Callable[[Path, Sequence[str] | None], Iterator[Batch]]
    package: str | None = None
    """The package that reads it; None if none is needed."""


JSON_LINES = Format(lines.json_lines)
FORMATS = {".txt": Format(lines.text_lines), ".parquet": Format(tables.parquet, "pyarrow")}
"""Formats by suffix. All other files hold JSON lines."""


def format_of(path: Path) -> Format:
    """Return the format of a file, by its name."""
    return FORMATS.get(without_packing(path).suffix, JSON_LINES)


def batches(path: Path, keys: Sequence[str] | None = None) -> Iterator[Batch]:
    """Yield the records of a file in batches, in their order; of a table only the columns `keys`."""
    check_installed(path)
    return format_of(path).batches(path, keys)


def packages() -> set[str]:
    """Return all packages that files are read with."""
    return {*PACKAGES.values(), *(found.package for found in FORMATS.values() if found.package)}


def check_installed(path: Path) -> None:
    """Raise MissingPackage if what reads a file of this kind is not installed."""
    for package in (PACKAGES.get(path.suffix), format_of(path).package):
        if package:
            extras.need("data", package, to=f"reading {path}")
