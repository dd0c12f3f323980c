"""Datasets by name, hf://ORG/NAME[/PART][@SPLIT], streamed by the package `datasets`, which runs no code of theirs."""

import importlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from mconv.errors import ConfigError, FormatError
from mconv.train.data.reading.batch import Batch
from mconv.train.data.reading.expansion import Expansion
from mconv.train.data.reading.tables import ROWS, columns, cut

SCHEME = "hf:"


class DatasetName(NamedTuple):
    """A dataset, as the package `datasets` loads it."""

    repository: str
    part: str | None
    """A configuration of the dataset, or a folder of its repository."""
    split: str


def is_dataset(path: Path) -> bool:
    """Return whether a source is a dataset by name; as a path, hf://ORG/NAME has one slash less."""
    return bool(path.parts) and path.parts[0] == SCHEME


def shown(path: Path) -> str:
    """Return a source as the user writes it."""
    return f"{SCHEME}//{'/'.join(path.parts[1:])}" if is_dataset(path) else str(path)


def parsed(path: Path) -> DatasetName:
    """Return the parts of a name. Raises ConfigError on one that has too few."""
    name, _, split = "/".join(path.parts[1:]).partition("@")
    parts = name.split("/", 2)
    if len(parts) < 2 or not all(parts):
        raise ConfigError(
            f"{shown(path)}: a dataset is hf://ORG/NAME, with /CONFIG or /FOLDER behind it, and @SPLIT unless it is train"
        )
    return DatasetName("/".join(parts[:2]), parts[2] if len(parts) == 3 else None, split or "train")


def dataset(path: Path, keys: Sequence[str] | None, expansion: Expansion) -> Iterator[Batch]:
    """Yield the batches of a dataset, while it is fetched."""
    name, place = parsed(path), shown(path)
    with _named(place):
        found = _open(name)
        names = found.column_names
        if names is not None:
            found = found.select_columns(columns(place, names, keys))
        tables = found.with_format("arrow").iter(ROWS)
        yield from cut(place, (batch for table in tables for batch in table.combine_chunks().to_batches()))


def _open(name: DatasetName) -> Any:
    """Return a dataset that is read as it is fetched; from its cache where there is no network."""
    module = importlib.import_module("datasets")
    module.disable_progress_bars()
    how = {"split": name.split, "streaming": not module.config.HF_HUB_OFFLINE}
    try:
        return module.load_dataset(name.repository, name.part, **how)
    except ValueError as error:
        if name.part is None or "BuilderConfig" not in str(error):
            raise
    return module.load_dataset(name.repository, data_dir=name.part, **how)


@contextmanager
def _named(place: str) -> Iterator[None]:
    """Raise the errors of the package as FormatError, with the dataset's name."""
    try:
        yield
    except FormatError:
        raise
    except (OSError, ValueError, RuntimeError) as error:  # among them, one about a dataset that is a script
        raise FormatError(f"{place}: {type(error).__name__}: {error}".splitlines()[0]) from error
