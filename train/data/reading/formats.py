"""The formats that records are read from, by suffix."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from mconv import extras
from mconv.errors import ConfigError, FormatError
from mconv.train.data.reading import csvs, lines, named, tables
from mconv.train.data.reading.batch import Batch
from mconv.train.data.reading.expansion import MAX_EXPAND, Expansion
from mconv.train.data.reading.packed import PACKAGES, PACKED, without_packing


@dataclass(frozen=True, slots=True)
class Format:
    """A format of files."""

    batches: Callable[[Path, Sequence[str] | None, Expansion], Iterator[Batch]]
    package: str | None = None
    """The package that reads it; None if none is needed."""
    packs_itself: bool = False
    """True if the format has a compression of its own, and no other around it."""


JSON_LINES = Format(lines.json_lines)
ARROW = Format(tables.arrow, "pyarrow", packs_itself=True)
FORMATS = {
    ".jsonl": JSON_LINES,
    ".json": JSON_LINES,
    ".ndjson": JSON_LINES,
    ".txt": Format(lines.text_lines),
    ".csv": Format(csvs.commas),
    ".tsv": Format(csvs.tabs),
    ".parquet": Format(tables.parquet, "pyarrow", packs_itself=True),
    ".arrow": ARROW,
    ".feather": ARROW,
}
"""Formats by suffix."""
DATASET = Format(named.dataset, "datasets")
"""Datasets by name (hf://ORG/NAME)."""


def known(path: Path) -> Format | None:
    """Return the format of a file or dataset, by its name; None if no row claims it."""
    if named.is_dataset(path):
        return DATASET
    found = FORMATS.get(without_packing(path).suffix)
    return None if found and found.packs_itself and path.suffix in PACKED else found


def format_of(path: Path) -> Format:
    """Return the format of a file or dataset, by its name. Raises FormatError if that says none."""
    if found := known(path):
        return found
    inner = without_packing(path)
    if inner.suffix in FORMATS:
        raise FormatError(f"{path}: a {inner.suffix} file is compressed inside; unpack it to {inner.name}")
    raise FormatError(
        f"{path}: the name says no format that is read: {', '.join(FORMATS)}, the first six also packed "
        f"({', '.join(PACKED)}); rename it, such as to {path.name}.jsonl"
    )


def batches(path: Path, keys: Sequence[str] | None = None, *, max_expand: float = MAX_EXPAND) -> Iterator[Batch]:
    """Yield the records of a file in batches, in their order; of a table only the columns `keys`."""
    if not max_expand >= 1:
        raise ConfigError(f"--max-expand is {max_expand}; it must be at least 1")
    check_installed(path)
    return format_of(path).batches(path, keys, Expansion.of(path, max_expand))


def packages() -> set[str]:
    """Return all packages that files are read with."""
    formats = (*FORMATS.values(), DATASET)
    return {*PACKAGES.values(), *(found.package for found in formats if found.package)}


def check_installed(path: Path) -> None:
    """Raise MissingPackage if what reads a file of this kind is not installed."""
    for package in (PACKAGES.get(path.suffix), format_of(path).package):
        if package:
            extras.need("data", package, to=f"reading {named.shown(path)}")
