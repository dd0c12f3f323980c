"""The working folder: the signatures of each file of the input, complete or absent, and what was decided."""

import json
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mconv.convert.folders.staging import write_whole
from mconv.errors import FormatError, refuse
from mconv.train.data.bad_records import Kind, RecordLocation, Rejected
from mconv.train.data.dedup.sign import BANDS, LINE, Settings, Signed, algorithm

Ids = npt.NDArray[np.int64]
"""Numbers of documents, counted over all files from 0."""


def useful(workers: int, amount: int, each: int) -> int:
    """Return how many processes to start, at most `workers`, if one is worth its start for `each` of the work."""
    return max(1, min(workers, amount // each))


@dataclass(frozen=True)
class Work:
    """A working folder, and the input that it belongs to."""

    folder: Path
    sources: Sequence[Path]
    settings: Settings
    on_bad_record: str
    max_expand: float
    """Bytes that a packed source may give for each of its own."""

    def path(self, number: int, ending: str) -> Path:
        """Return the path of a file that belongs to source `number`."""
        return self.folder / f"{number:05d}{ending}"

    def identity(self, number: int) -> dict[str, Any]:
        """Return what the signatures of a source depend on."""
        stat = self.sources[number].stat()
        return {
            "file": str(self.sources[number]), "bytes": stat.st_size, "mtime_ns": stat.st_mtime_ns,
            "settings": asdict(self.settings), "on_bad_record": self.on_bad_record, "algorithm": algorithm(),
        }  # fmt: skip

    def signed(self, number: int) -> bool:
        """Return whether the signatures of a source are here, made from the file as it is now with these settings."""
        facts = self._facts(number)
        return facts is not None and facts["identity"] == self.identity(number)

    def _facts(self, number: int) -> dict[str, Any] | None:
        path = self.path(number, ".json")
        try:
            facts: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            facts["identity"], facts["batches"]
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError) as error:
            raise FormatError(f"{path} is damaged ({error}); remove it and sign again") from error
        return facts

    def store(self, number: int, batches: Iterable[Signed]) -> Iterator[int]:
        """Write the signatures of a source, and yield the number of records of each batch as it is written."""
        identity = self.identity(number)
        parts = {
            ending: self.folder / f".{number:05d}{ending}.{os.getpid()}" for ending in (".rows", ".npy", ".rejected")
        }
        counts: list[int] = []
        try:
            with parts[".rows"].open("wb") as rows, parts[".rejected"].open("w", encoding="utf-8") as rejected:
                for batch in batches:
                    batch.columns.tofile(rows)
                    rejected.writelines(json.dumps([*one]) + "\n" for one in batch.rejected)
                    counts.append(batch.columns.shape[1])
                    yield counts[-1]
            _transpose(parts[".rows"], parts[".npy"], counts, self.settings.columns)
            parts[".npy"].replace(self.path(number, ".npy"))
            parts[".rejected"].replace(self.path(number, ".rejected"))
            self.save(self.path(number, ".json"), {"identity": identity, "batches": counts})
        finally:
            for part in parts.values():
                part.unlink(missing_ok=True)

    def save(self, path: Path, facts: Any) -> None:
        """Write a file of JSON that is complete or absent; shards share the folder."""
        write_whole(path, json.dumps(facts) + "\n", durable=False, at_once=True)

    def check_signed(self) -> None:
        """Raise FormatError unless all sources are signed as they are now."""
        problems = [
            f"{self.folder} has no signatures of {path} as it is now, with these options; sign it first (--phase sign)"
            for number, path in enumerate(self.sources)
            if not self.signed(number)
        ]
        refuse(problems, doing="reading the signatures", kind=FormatError)

    def signatures(self) -> "Signatures":
        """Return the signatures of all sources, mapped from the disk."""
        return Signatures([np.load(self.path(number, ".npy"), mmap_mode="r") for number in range(len(self.sources))])

    def batches(self, number: int) -> list[int]:
        """Return the number of records in each batch of a source."""
        facts = self._facts(number)
        return facts["batches"] if facts else []

    def rejected(self, number: int) -> Iterator[Rejected]:
        """Yield the bad records of a source."""
        with self.path(number, ".rejected").open(encoding="utf-8") as lines:
            for (file, line), kind, reason in map(json.loads, lines):
                yield Rejected(RecordLocation(file, line), Kind(kind), reason)


def _transpose(rows: Path, target: Path, counts: Sequence[int], columns: int) -> None:
    """Write an array with a row for each column of the signatures, from batches that lie one behind the other."""
    array = np.lib.format.open_memmap(target, "w+", np.uint64, (columns, sum(counts)))
    start = 0
    with rows.open("rb") as file:
        for count in counts:
            array[:, start : start + count] = np.fromfile(file, np.uint64, columns * count).reshape(columns, count)
            start += count
    array.flush()


@dataclass(frozen=True)
class Signatures:
    """The signatures of all sources. Documents are counted over all of them, in their order."""

    arrays: Sequence[npt.NDArray[np.uint64]]

    @cached_property
    def starts(self) -> Ids:
        """The first document of each source, and the number of all."""
        return np.cumsum([0, *(array.shape[1] for array in self.arrays)], dtype=np.int64)

    def __len__(self) -> int:
        return int(self.starts[-1])

    @property
    def bands(self) -> int:
        """Number of bands."""
        return self.arrays[0].shape[0] - BANDS

    def column(self, column: int) -> Iterator[tuple[int, npt.NDArray[np.uint64]]]:
        """Yield the first document and the column of each source."""
        yield from ((int(start), array[column]) for start, array in zip(self.starts[:-1], self.arrays, strict=True))

    def values(self, column: int, ids: Ids) -> npt.NDArray[np.uint64]:
        """Return the column of some documents."""
        found = np.empty(len(ids), np.uint64)
        source = self.source(ids)
        for number in np.unique(source):
            here = source == number
            found[here] = self.arrays[number][column][ids[here] - self.starts[number]]
        return found

    def source(self, ids: Ids) -> npt.NDArray[np.int64]:
        """Return which source each document comes from."""
        return np.searchsorted(self.starts, ids, side="right") - 1

    def lines(self, ids: Ids) -> npt.NDArray[np.uint64]:
        """Return the line or row of each document."""
        return self.values(LINE, ids)
