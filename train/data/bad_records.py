"""Bad records: their kinds, the policies for them, and the file that lists those that were left out."""

import json
import os
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from mconv.errors import FormatError

REJECTED = ".rejected.jsonl"
"""End of the name of the reject file, which lies beside the data."""
SHOWN = 3
"""Number of bad records that are named on the terminal and in an error."""


class Kind(str, Enum):
    """Kinds of bad records."""

    NOT_UTF8 = "not UTF-8"
    NOT_JSON = "not JSON"
    NOT_CSV = "not CSV"
    NOT_UNICODE = "not Unicode"
    TOO_LONG = "too long"
    NO_OBJECT = "not an object"
    NO_FIELD = "field missing"
    NULL = "null"
    WRONG_TYPE = "wrong type"
    UNKNOWN_FIELD = "unknown field"
    UNKNOWN_ROLE = "unknown role"
    CONTRADICTION = "contradiction"
    SWITCH = "neither yes nor no"
    TEMPLATE = "chat template"
    LINE_BREAK = "line break"

    __str__ = str.__str__


FORMAT = (Kind.NO_OBJECT, Kind.NO_FIELD, Kind.UNKNOWN_FIELD)
"""Kinds that, where every record of a file is of them, say that the file has another format."""


class RecordLocation(NamedTuple):
    """File and line of a record, from 1; of a parquet file the row."""

    file: str
    line: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line}"


class Rejected(NamedTuple):
    """A bad record that is left out."""

    place: RecordLocation
    kind: Kind
    reason: str


class BadRecord(FormatError):
    """A record that cannot be used: says where it is, what is wrong, of which kind that is, and how to go on."""

    def __init__(self, kind: Kind, reason: str, place: RecordLocation | None = None) -> None:
        where = f"{place}: " if place else ""
        super().__init__(f"{where}{reason} (kind: {kind}; --on-bad-record skip leaves bad records out)")
        self.kind, self.reason, self.place = kind, reason, place

    def __reduce__(self) -> tuple[Any, ...]:
        return BadRecord, (self.kind, self.reason, self.place)


OnBad = Callable[[BadRecord, RecordLocation], Rejected]
"""A policy for bad records: `stop` or `skip`."""


def stop(error: BadRecord, place: RecordLocation) -> Rejected:
    """Raise the error, with its place."""
    raise BadRecord(error.kind, error.reason, place) from None


def skip(error: BadRecord, place: RecordLocation) -> Rejected:
    """Return what the reject file says of the record."""
    return Rejected(place, error.kind, error.reason)


POLICIES: dict[str, OnBad] = {"stop": stop, "skip": skip}
"""Values of --on-bad-record."""


@dataclass(slots=True)
class RejectTotals:
    """The bad records so far."""

    counts: dict[str, int] = field(default_factory=dict)
    """Bad records by kind."""
    first: list[str] = field(default_factory=list)
    records: dict[str, int] = field(default_factory=dict)
    """Records read from each file, good and bad."""
    foreign: dict[str, int] = field(default_factory=dict)
    """Records of each file that say that it has another format."""
    size: int = 0
    """Bytes of the reject file."""

    def facts(self, name: str) -> dict[str, Any]:
        """Return what the record beside the data says of them; `name` is that of the reject file."""
        return {
            "rejected": self.counts,
            "first_rejected": self.first,
            "reject_file": name if self.counts else None,
        }

    def check(self) -> None:
        """Raise FormatError where a whole file, or the whole input, is bad: that is no matter of single records."""
        total = sum(self.counts.values())
        if total and total == sum(self.records.values()):
            raise FormatError(f"every record of the input is bad: {self.summary()}")
        for file, foreign in self.foreign.items():
            if foreign == self.records[file]:
                raise FormatError(
                    f"{file}: no record has the fields that were asked for; this is another format rather than "
                    f"{foreign} bad records, so --on-bad-record skip does not pass over it: {self.summary(file)}"
                )

    def summary(self, file: str = "") -> str:
        """Return the counts by kind, and the first bad records (of `file`)."""
        ordered = Counter(self.counts).most_common()
        counts = ", ".join(f"{count} {kind}" for kind, count in ordered)
        first = [line for line in self.first if line.startswith(file)]
        return "; ".join([counts, *first])


class Rejects:
    """The bad records of an input, written to `path` one by one; the file is there if there is one."""

    def __init__(self, path: Path, totals: RejectTotals) -> None:
        """Go on behind `totals`; what was written after that is cut off."""
        self.totals, self._path = totals, path
        self._file: BinaryIO | None = None
        if path.exists():
            os.truncate(path, totals.size)

    def read(self, file: str, records: int) -> None:
        """Count records that were read, good and bad."""
        self.totals.records[file] = self.totals.records.get(file, 0) + records

    def add(self, rejected: Rejected) -> None:
        """Count a bad record and write it down."""
        (file, line), kind, reason = rejected
        found = self.totals
        found.counts[str(kind)] = found.counts.get(str(kind), 0) + 1
        if kind in FORMAT:
            found.foreign[file] = found.foreign.get(file, 0) + 1
        if len(found.first) < SHOWN:
            found.first.append(f"{file}:{line}: {reason}")
        self._file = self._file or self._path.open("ab")
        entry = json.dumps({"file": file, "line": line, "kind": str(kind), "reason": reason})
        found.size += self._file.write(entry.encode() + b"\n")

    def sync(self) -> None:
        """Have the disk hold what was written."""
        if self._file:
            self._file.flush()
            os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the reject file."""
        if self._file:
            self._file.close()
