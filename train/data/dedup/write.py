"""Write the records that are kept, as they were read."""

import importlib
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from itertools import compress
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mconv.errors import FormatError, MconvError, refuse
from mconv.train.data.dedup.decide import Decisions
from mconv.train.data.dedup.sign import LINE
from mconv.train.data.dedup.wanted import placed
from mconv.train.data.dedup.work import Signatures, Work
from mconv.train.data.reading import lines, tables
from mconv.train.data.reading.batch import Batch
from mconv.train.data.reading.formats import format_of
from mconv.train.data.reading.lines import JsonLines
from mconv.train.data.reading.packed import without_packing
from mconv.train.data.writing.packing import PACKERS

Kept = npt.NDArray[np.bool_]


class Writer(ABC):
    """A file that records of one kind are written to."""

    @abstractmethod
    def __init__(self, part: Path, name: Path, source: Path) -> None:
        """Open `part`, which will have the name `name`, for records like those of `source`."""

    @abstractmethod
    def write(self, batch: Batch, kept: Kept) -> None:
        """Write the records of a batch that are kept."""

    @abstractmethod
    def close(self) -> None:
        """Write the end of the file."""


class LineWriter(Writer):
    """Lines, byte for byte; a last line without an end gets one."""

    def __init__(self, part: Path, name: Path, source: Path) -> None:
        self._stack = ExitStack()
        file = self._stack.enter_context(part.open("wb"))
        self._file = self._stack.enter_context(PACKERS[name.suffix](file)) if name.suffix in PACKERS else file

    def write(self, batch: Batch, kept: Kept) -> None:
        """Write the lines of a batch that are kept."""
        if isinstance(batch, JsonLines):  # not a line that was too long
            self._file.write(b"".join(line + b"\n" for _, line in compress(batch.lines(), kept.tolist())))

    def close(self) -> None:
        """Write the end of a packed file."""
        self._stack.close()


class TableWriter(Writer):
    """Rows of a parquet file, with the columns of the first source."""

    def __init__(self, part: Path, name: Path, source: Path) -> None:
        parquet = importlib.import_module("pyarrow.parquet")
        self._name, self._schema = name, parquet.read_schema(source)
        self._writer = parquet.ParquetWriter(part, self._schema, compression="zstd")

    def write(self, batch: Batch, kept: Kept) -> None:
        """Write the rows of a batch that are kept. Raises FormatError if its columns are others."""
        table = batch.table if isinstance(batch, tables.Rows) else None
        if table is None or not table.schema.equals(self._schema):
            raise FormatError(
                f"{batch.file} has other columns than the first source of {self._name}; name a folder as --out"
            )
        self._writer.write_batch(table.filter(importlib.import_module("pyarrow").array(kept)))

    def close(self) -> None:
        """Write the footer."""
        self._writer.close()


WRITERS: dict[Any, type[Writer]] = {
    lines.json_lines: LineWriter, lines.text_lines: LineWriter, tables.parquet: TableWriter,
}  # fmt: skip
"""Writers by the function that reads the format."""


@dataclass(frozen=True, slots=True)
class Outputs:
    """Where the kept records of each source go."""

    out: Path
    sources: Sequence[Path]
    folder: bool
    """Whether each source has a file of its own in the folder `out`; otherwise `out` is one file."""

    def of(self, number: int) -> Path:
        """Return the path that the kept records of a source go to."""
        return self.out / self._names()[number] if self.folder else self.out

    def _names(self) -> list[Path]:
        """Return a path for each source: its own, below the folder that all share."""
        paths = [path.parent.resolve() / path.name for path in self.sources]
        shared = os.path.commonpath([path.parent for path in paths])
        return [path.relative_to(shared) for path in paths]

    def beside(self, ending: str) -> Path:
        """Return the path of a file about the output, which lies beside it."""
        name = self.out.name if self.folder else without_packing(self.out).stem
        return self.out.with_name(name + ending)


def outputs(out: Path, sources: Sequence[Path]) -> Outputs:
    """Return where the kept records go: a name that ends like a file of records is one file, any other a folder.

    Raises MconvError where a format is not written, or a file would be its own output.
    """
    made = Outputs(out, sources, folder=without_packing(out).suffix not in (".jsonl", ".json", ".txt", ".parquet"))
    problems = [
        f"{path}: dedup writes JSON lines, text and parquet only; `mconv data export` makes one of them"
        for path in sources
        if format_of(path).batches not in WRITERS
    ]
    kinds = {format_of(path).batches for path in ([*sources] if made.folder else [*sources, out])}
    if not made.folder and len(kinds) > 1:
        problems.append(f"--out {out} cannot take in all sources, because their formats differ; name a folder")
    refuse(problems, doing="writing the kept records")
    _check_apart(made)
    return made


def _check_apart(made: Outputs) -> None:
    """Raise MconvError where an output is a source, or the folder has files that this run does not replace."""
    resolved = {path.resolve() for path in made.sources}
    names = {made.of(number) for number in range(len(made.sources))}
    if len(resolved) < len(made.sources):
        raise MconvError("a source is named twice: all of it would be a duplicate; name each once")
    if taken := [path for path in names if path.resolve() in resolved]:
        raise MconvError(f"--out {made.out} would replace the source {min(taken)}; choose another place")
    if made.folder and made.out.is_dir():
        found = (path for path in made.out.rglob("*") if path.is_file() and not path.name.startswith("."))
        others = sorted(path for path in found if path not in names)
        refuse(
            [f"{path} is not of this run, and would lie among what it keeps; remove it or choose another --out"
             for path in others], doing="writing the kept records",
        )  # fmt: skip


def write(
    work: Work, signatures: Signatures, decisions: Decisions, target: Path, part: Path, numbers: Sequence[int],
    tell: Callable[[int], None],
) -> None:  # fmt: skip
    """Write what is kept of some sources to `part`, which will be `target`."""
    first = work.sources[numbers[0]]
    with closing(WRITERS[format_of(first).batches](part, target, first)) as writer:
        for number in numbers:
            for batch, kept in _kept(work, signatures, decisions, number):
                writer.write(batch, kept)
                tell(len(kept))


def _kept(work: Work, signatures: Signatures, decisions: Decisions, number: int) -> Iterator[tuple[Batch, Kept]]:
    """Yield each batch of a source, and which of its records are kept: neither bad nor duplicates."""
    first, lines_ = int(signatures.starts[number]), signatures.arrays[number][LINE]
    for start, count, batch in placed(work, number, first, None):
        kept = lines_[start - first : start - first + count] > 0
        here = decisions.removed[slice(*np.searchsorted(decisions.removed, (start, start + count)))]
        kept[here - start] = False
        yield batch, kept
