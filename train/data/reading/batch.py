"""Batches of records: made by the process that reads the files, opened by the ones that tokenize."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from mconv.train.data.bad_records import BadRecord, RecordLocation
from mconv.train.data.reading.fields import texts_of

BLOCK = 1 << 20
"""Bytes of records that are read, and tokenized, together."""


class Record(NamedTuple):
    """A record of a file."""

    place: RecordLocation
    value: Any
    """Its fields as JSON values, or its texts as a tuple; BadRecord if it has none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch(ABC):
    """Records of one file that lie one behind the other, as they were read."""

    file: str
    """The path that the user gave."""
    first: int
    """Line or row of its first record, from 1."""
    size: int
    """Bytes of the unpacked file that it stands for."""

    @abstractmethod
    def records(self) -> Iterator[Record]:
        """Yield the fields of each record, or BadRecord, in their order."""

    def texts(self, keys: Sequence[str]) -> Iterator[Record]:
        """Yield the texts of each record under `keys`, as a tuple, or BadRecord, in their order."""
        for place, value in self.records():
            yield Record(place, texts_of(value, keys))


@dataclass(frozen=True, slots=True, kw_only=True)
class BadBatch(Batch):
    """One bad record, which was not kept: a line without an end."""

    error: BadRecord

    def records(self) -> Iterator[Record]:
        """Yield what is wrong with the record."""
        yield Record(RecordLocation(self.file, self.first), self.error)
