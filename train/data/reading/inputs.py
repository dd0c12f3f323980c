"""The files that sources name: files themselves, folders, patterns, datasets that `datasets` saved, datasets by name."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from glob import has_magic
from pathlib import Path, PurePosixPath
from typing import Any

from mconv.convert.formats.jsonfile import read_json
from mconv.errors import ConfigError, FormatError, MconvError, refuse
from mconv.train.data.reading.formats import FORMATS, format_of, known
from mconv.train.data.reading.named import is_dataset

STATE, SPLITS = "state.json", "dataset_dict.json"
"""Files of a folder that `Dataset.save_to_disk` and `DatasetDict.save_to_disk` write."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """What is taken of folders."""

    split: str | None = None
    """Split of datasets that have several."""
    skip_unknown: bool = False
    """True to leave out files of a folder or pattern whose name says no format."""


def files(sources: Sequence[Path], choice: Choice = Choice()) -> list[Path]:
    """Return the files and datasets that sources name, each folder's in the order of their names.

    Raises MconvError on all that cannot be read, at once.
    """
    found: list[Path] = []
    problems = []
    for source in sources:
        try:
            found += _named_by(source, choice)
        except MconvError as error:
            problems.append(str(error))
    refuse(problems, doing="reading the input")
    if not found:
        raise MconvError("give at least one file to read")
    if choice.split and not any((path.parent.parent / SPLITS).is_file() for path in found):
        raise ConfigError(
            f"--split {choice.split}: no source is a folder that datasets saved with splits (hf://ORG/NAME has @SPLIT)"
        )
    return found


def _named_by(source: Path, choice: Choice) -> Iterator[Path]:
    """Yield the files of a source. Raises MconvError if there are none, or not of a format."""
    if is_dataset(source) or source.is_file():
        format_of(source)
        yield source
    elif source.is_dir():
        yield from _in_folder(source, choice)
    elif has_magic(str(source)):
        matches = sorted(Path(source.anchor or ".").glob(str(source.relative_to(source.anchor))))
        own = [path for path in matches if not any(part[0] == "." for part in {*path.parts} - {*source.parts})]
        if not own:
            raise FormatError(f"{source}: no file has a name of this pattern")
        taken = [path for path in own if path.is_dir() or known(path) or not choice.skip_unknown]
        yield from dict.fromkeys(found for path in taken for found in _named_by(path, choice))
    else:
        raise FormatError(f"{source}: no such file")


def _in_folder(folder: Path, choice: Choice) -> Iterator[Path]:
    """Yield the files below a folder. Raises FormatError on those of no format, unless they are to be left out."""
    found = [*_below(folder, choice)]
    if not found:
        raise FormatError(f"{folder}: no file in this folder or below it")
    unknown = [path for path in found if known(path) is None]
    if unknown and not choice.skip_unknown:
        others = f" and {len(unknown) - 1} more files" if len(unknown) > 1 else ""
        raise FormatError(
            f"{unknown[0]}{others}: the name says no format that is read ({', '.join(FORMATS)}); --skip-unknown-files "
            "leaves such files out"
        )
    if len(unknown) == len(found):
        raise FormatError(f"{folder}: no file of a format that is read ({', '.join(FORMATS)})")
    yield from (path for path in found if known(path))


def _below(folder: Path, choice: Choice) -> Iterator[Path]:
    """Yield all files below a folder that are not hidden, in the order of their names; of saved datasets their data."""
    if (folder / STATE).is_file() and (folder / "dataset_info.json").is_file():
        yield from _saved(folder)
    elif (folder / SPLITS).is_file():
        yield from _saved(_split(folder, choice.split))
    else:
        for path in sorted(path for path in folder.iterdir() if not path.name.startswith(".")):
            if path.is_dir() and not path.is_symlink():
                yield from _below(path, choice)
            elif path.is_file():
                yield path


def _saved(folder: Path) -> Iterator[Path]:
    """Yield the Arrow files of a saved dataset. A name that leads out of its folder is refused."""
    entries = read_json(folder / STATE).get("_data_files")
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries) or not entries:
        raise FormatError(f"{folder / STATE}: names no files of data; `datasets` did not save this")
    for entry in entries:
        path = folder / _checked(folder / STATE, entry.get("filename"))
        if not path.is_file():
            raise FormatError(f"{path}: no such file, but {STATE} names it")
        yield path


def _split(folder: Path, wanted: str | None) -> Path:
    """Return the folder of a split. Raises ConfigError where there are several and none is chosen."""
    names = read_json(folder / SPLITS).get("splits")
    if not isinstance(names, list) or not names:
        raise FormatError(f"{folder / SPLITS}: names no splits")
    splits = [_checked(folder / SPLITS, name) for name in names]
    chosen = splits[0] if wanted is None and len(splits) == 1 else wanted
    if chosen is None or chosen not in splits:
        raise ConfigError(f"{folder} has the splits {', '.join(splits)}; choose one with --split")
    return folder / chosen


def _checked(place: Path, name: Any) -> str:
    """Return a name that was read from a file. Raises FormatError unless it is that of a file in the same folder."""
    if not isinstance(name, str) or PurePosixPath(name).name != name or name in ("", ".", ".."):
        raise FormatError(f"{place}: names {json.dumps(name)}, which is not a file of its folder")
    return name
