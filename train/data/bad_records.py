"""Bad records: their kinds, the policies for them, and the file that lists those that were left out."""

import json
from collections import Counter
from collections.abc import Callable
from enum import Enum
from pathlib import Path
from typing import IO, Any, NamedTuple

from mconv.errors import FormatError

REJECTED = ".rejected.jsonl"
"""End of the name of the reject file, which lies beside the data."""
SHOWN = 3
"""Number of bad records that are named on the terminal and in an error."""


class Kind(str, Enum):
    """Kinds of bad records."""

    NOT_UTF8 = "not UTF-8"
    NOT_JSON = "not JSON"
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


class Rejects:
    """The bad records of an input, written to `path` one by one; the file is there if there is one."""

    def __init__(self, path: Path) -> None:
        self.counts: Counter[str] = Counter()
        self.first: list[str] = []
        self.records: Counter[str] = Counter()
        """Records read from each file, good and bad."""
        self._foreign: Counter[str] = Counter()
        self._path = path
        self._file: IO[str] | None = None

    def add(self, rejected: Rejected) -> None:
        """Count a bad record and write it down."""
        (file, line), kind, reason = rejected
        self.counts[str(kind)] += 1
        self._foreign[file] += kind in FORMAT
        if len(self.first) < SHOWN:
            self.first.append(f"{file}:{line}: {reason}")
        self._file = self._file or self._path.open("w", encoding="utf-8")
        self._file.write(json.dumps({"file": file, "line": line, "kind": str(kind), "reason": reason}) + "\n")

    def facts(self, name: str) -> dict[str, Any]:
        """Return what the record beside the data says of them; `name` is that of the reject file."""
        return {
            "rejected": dict(self.counts),
            "first_rejected": self.first,
            "reject_file": name if self.counts else None,
        }

    def close(self) -> None:
        """Close the reject file."""
        if self._file:
            self._file.close()

    def check(self) -> None:
        """Raise FormatError where a whole file, or the whole input, is bad: that is no matter of single records."""
        total = sum(self.counts.values())
        if total and total == sum(self.records.values()):
            raise FormatError(f"every record of the input is bad: {self.summary()}")
        for file, foreign in self._foreign.items():
            if foreign == self.records[file]:
                raise FormatError(
                    f"{file}: no record has the fields that were asked for; this is another format rather than "
                    f"{foreign} bad records, so --on-bad-record skip does not pass over it: {self.summary(file)}"
                )

    def summary(self, file: str = "") -> str:
        """Return the counts by kind, and the first bad records (of `file`)."""
        counts = ", ".join(f"{count} {kind}" for kind, count in self.counts.most_common())
        first = [line for line in self.first if line.startswith(file)]
        return "; ".join([counts, *first])
