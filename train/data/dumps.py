"""Divide a corpus into dumps: groups of files of about equal size, to be tokenized one job each."""

import csv
import heapq
import io
import os
import platform
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from time import perf_counter
from typing import Any

from mconv.convert.folders.staging import write_whole
from mconv.errors import FormatError, MconvError, refuse
from mconv.train.data.sources import files_below

DUMP_BYTES = 150e9
"""Bytes of a dump, from which the number of dumps follows where none is given."""
COLUMNS = (
    "slurm_job_id", "node", "start", "end", "paths_file", "output_folder", "dataset_total_size", "processed_total_size",
    "number_of_workers_per_node", "time", "bw", "total_tokens_processed", "throughput (Million Tokens/Second/Node)",
)  # fmt: skip
"""Head of the table of results, as swiss-ai's submit_tokenization.sh writes it."""
DATA, OPEN, COMPLETED = "raw-dataset-link", "dumps", "completed-dumps"
"""Names within the metadata folder: the link to the corpus, the dumps to do, those that are done."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Dump:
    """A group of files of a corpus."""

    number: int
    files: tuple[Path, ...]
    """Paths within the corpus, the largest file first."""
    bytes: int


def dumps(sizes: Sequence[tuple[Path, int]], *, count: int | None = None) -> list[Dump]:
    """Return each file in one of `count` dumps: the largest first, each into the dump that is the smallest so far.

    The largest and the smallest dump then differ by the largest file at most. Default: one dump per 150 GB. There are
    never more dumps than files. Raises MconvError without any file.
    """
    if not sizes:
        raise MconvError("there is no file to divide into dumps")
    if count is not None and count < 1:
        raise MconvError(f"--n-dumps is {count}; it must be at least 1")
    count = min(count or int(sum(size for _, size in sizes) / DUMP_BYTES) + 1, len(sizes))
    smallest = [(0, number) for number in range(count)]
    files: list[list[Path]] = [[] for _ in range(count)]
    for path, size in sorted(sizes, key=lambda one: (-one[1], str(one[0]))):
        held, number = smallest[0]
        files[number].append(path)
        heapq.heapreplace(smallest, (held + size, number))
    held_by = {number: held for held, number in smallest}
    return [Dump(number=number, files=tuple(paths), bytes=held_by[number]) for number, paths in enumerate(files)]


def files_of(
    folder: Path, wanted: Callable[[Path], bool], *, filter_in: Collection[str] = (), filter_out: Collection[str] = ()
) -> list[tuple[Path, int]]:
    """Return (path within the folder, size) of the files that are wanted, sorted; links are followed, each folder once.

    A file is left out unless its path within the folder contains one of `filter_in`, and where it contains one of
    `filter_out`.
    """
    if not folder.is_dir():
        raise FormatError(f"{folder}: {'not a folder' if folder.exists() else 'no such folder'}")
    found = sorted(path for path in files_below(folder) if not path.name.startswith(".") and wanted(path))
    within = {path.relative_to(folder): path for path in found}
    kept = [
        one
        for one in within
        if (not filter_in or any(word in str(one) for word in filter_in))
        and not any(word in str(one) for word in filter_out)
    ]
    refuse([f"{one}: a line break in its name" for one in kept if "\n" in str(one)], doing=f"searching {folder}")
    return [(one, within[one].stat().st_size) for one in kept]


def write(found: Sequence[Dump], folder: Path, metadata: Path) -> None:
    """Write the metadata folder: a link to the corpus, and dumps/paths_file_N.txt with the files of each dump.

    Raises MconvError where it holds dumps already, because jobs may be working on them.
    """
    for name in (OPEN, COMPLETED):
        if (metadata / name).is_dir() and any((metadata / name).iterdir()):
            raise MconvError(f"{metadata / name} holds dumps already; remove {metadata}, or choose another --metadata")
    (metadata / OPEN).mkdir(parents=True, exist_ok=True)
    link = metadata / DATA
    link.unlink(missing_ok=True)
    link.symlink_to(folder.resolve())
    for dump in found:
        write_whole(metadata / OPEN / file_name(dump.number), "".join(f"{path}\n" for path in dump.files))


def is_of(metadata: Path, folder: Path) -> bool:
    """Return whether a metadata folder holds dumps of this corpus."""
    link = metadata / DATA
    return link.is_symlink() and link.resolve() == folder.resolve()


def file_name(number: int) -> str:
    """Return the name of the file that lists a dump's files."""
    return f"paths_file_{number}.txt"


def read(metadata: Path) -> list[Dump]:
    """Return the dumps of a metadata folder that are not done yet, by their numbers. Raises FormatError without any."""
    if not (metadata / OPEN).is_dir():
        raise FormatError(f"{metadata} has no {OPEN}; `mconv data dumps FOLDER --metadata {metadata}` makes it")
    listed = {
        int(number): path
        for path in (metadata / OPEN).glob("paths_file_*.txt")
        if (number := path.stem.removeprefix("paths_file_")).isdecimal()
    }
    found = []
    for order, path in sorted(listed.items()):
        files = tuple(Path(line) for line in path.read_text().splitlines())
        lost = [f"{path}: {one} is not in {metadata / DATA}" for one in files if not _is_within(metadata / DATA, one)]
        refuse(lost, doing=f"reading {path}", kind=FormatError)
        size = sum((metadata / DATA / one).stat().st_size for one in files)
        found.append(Dump(number=order, files=files, bytes=size))
    return found


def _is_within(folder: Path, one: Path) -> bool:
    return not one.is_absolute() and ".." not in one.parts and (folder / one).is_file()


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What tokenizing a dump came to: a row of the table of results."""

    job: str
    node: str
    start: datetime
    end: datetime
    paths_file: Path
    out: Path
    bytes: int
    """Bytes of the dump's files."""
    processed: int
    """Bytes of the output folder."""
    workers: int
    seconds: float
    tokens: int

    @property
    def row(self) -> list[Any]:
        """The values of `COLUMNS`."""
        bandwidth, throughput = (amount / self.seconds for amount in (self.bytes, self.tokens / 1e6))
        return [
            self.job, self.node, self.start.isoformat(timespec="seconds"), self.end.isoformat(timespec="seconds"),
            self.paths_file, self.out, self.bytes, self.processed, self.workers, f"{self.seconds:.3f}",
            f"{bandwidth:.0f}", self.tokens, f"{throughput:.6f}",
        ]  # fmt: skip


def run(
    dump: Dump, metadata: Path, out: Path, tokenize: Callable[[list[Path], Path], int], *, table: Path, workers: int
) -> Result:
    """Tokenize a dump into `out`, add its row to `table`, and put its paths file to the completed ones.

    `tokenize` writes the files that it is given to a prefix and returns the number of tokens. Until the paths file has
    moved the dump counts as not done, and doing it again replaces what there is of it.
    """
    start, began = datetime.now().astimezone(), perf_counter()
    tokens = tokenize([metadata / DATA / one for one in dump.files], out / "tokens")
    listed = metadata / OPEN / file_name(dump.number)
    result = Result(
        job=os.environ.get("SLURM_JOB_ID", "local"), node=platform.node(), start=start, end=datetime.now().astimezone(),
        paths_file=listed, out=out, bytes=dump.bytes, processed=sum(path.stat().st_size for path in out.iterdir()),
        workers=workers, seconds=max(perf_counter() - began, 1e-3), tokens=tokens,
    )  # fmt: skip
    _add(table, result.row)
    (metadata / COMPLETED).mkdir(exist_ok=True)
    listed.replace(metadata / COMPLETED / listed.name)
    return result


def _add(table: Path, row: Sequence[Any]) -> None:
    """Append a row to the table, with its head if it is new; several jobs may do so at once, each in one write."""
    with suppress(FileExistsError), table.open("x", newline="") as file:
        csv.writer(file, lineterminator="\n").writerow(COLUMNS)
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(row)
    with table.open("a", newline="") as file:
        file.write(text.getvalue())
