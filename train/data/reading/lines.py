"""Files of lines: JSON lines, and text of which each line is a document."""

from codecs import BOM_UTF8
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from mconv.train.data.bad_records import BadRecord, Kind, RecordLocation
from mconv.train.data.reading.batch import BLOCK, BadBatch, Batch, Record
from mconv.train.data.reading.expansion import Expansion
from mconv.train.data.reading.fields import decoded, parsed, utf8
from mconv.train.data.reading.packed import unpacked

LONGEST = 1 << 26
"""Bytes of a line. Tokenizers take about 130 bytes of memory for each byte of a text."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JsonLines(Batch):
    """Lines of JSON, a record each. Blank ones are none."""

    block: bytes

    def lines(self) -> Iterator[tuple[RecordLocation, bytes]]:
        """Yield the place and the bytes of each line that is not blank."""
        for number, line in enumerate(self.block.split(b"\n"), self.first):
            if line and not line.isspace():
                yield RecordLocation(self.file, number), line

    def records(self) -> Iterator[Record]:
        """Yield the JSON of each line."""
        for place, line in self.lines():
            try:
                yield Record(place, parsed(line))
            except BadRecord as error:
                yield Record(place, error)


@dataclass(frozen=True, slots=True, kw_only=True)
class TextLines(JsonLines):
    """Lines of text, a document each, whatever field is asked for."""

    def records(self) -> Iterator[Record]:
        """Yield each line as the field `text`: what Python's text mode takes for a line, stripped, blank ones left out.

        A byte order mark is a letter here, as it is there.
        """
        for place, line in self.lines():
            try:
                text = utf8(line)
            except BadRecord as error:
                yield Record(place, error)
                continue
            for part in text.split("\r"):
                if part := part.strip():
                    yield Record(place, {"text": part})

    def texts(self, keys: Sequence[str]) -> Iterator[Record]:
        """Yield each line without the white space around it."""
        for place, line in self.lines():
            try:
                yield Record(place, (_plain(line, place),) * len(keys))
            except BadRecord as error:
                yield Record(place, error)


def _plain(line: bytes, place: RecordLocation) -> str:
    """Return a line of a text file: one document. A byte order mark inside the file is part of the text."""
    text = decoded(line)
    return ("\ufeff" * (place.line > 1 and line.startswith(BOM_UTF8)) + text).strip()


def json_lines(path: Path, keys: Sequence[str] | None, expansion: Expansion) -> Iterator[Batch]:
    """Yield the batches of a file of JSON lines."""
    return _batches(path, JsonLines, expansion)


def text_lines(path: Path, keys: Sequence[str] | None, expansion: Expansion) -> Iterator[Batch]:
    """Yield the batches of a text file."""
    return _batches(path, TextLines, expansion)


def _batches(path: Path, kind: type[JsonLines], expansion: Expansion) -> Iterator[Batch]:
    """Yield batches of whole lines, and of a line that is too long what is wrong with it."""
    first, name = 1, str(path)
    with unpacked(path, expansion) as file:
        while (found := _read_lines(file)).size:
            if found.whole:
                yield kind(file=name, first=first, size=len(found.whole), block=found.whole)
            first += found.whole.count(b"\n")
            if dropped := found.size - len(found.whole):
                yield BadBatch(file=name, first=first, size=dropped, error=_too_long())
                first += 1


class _LinesRead(NamedTuple):
    """The next lines of a file."""

    whole: bytes
    size: int
    """Bytes that were read: of the lines, and of a line behind them that was too long to be kept."""


def _read_lines(file: Any) -> _LinesRead:
    """Read a block and the rest of its last line."""
    block: bytes = file.read(min(BLOCK, LONGEST))
    if block.endswith(b"\n") or not block:
        return _LinesRead(block, len(block))
    start = block.rfind(b"\n") + 1
    rest = file.readline(LONGEST)
    if len(block) - start + len(rest) < LONGEST:
        whole = block + rest
        return _LinesRead(whole, len(whole))
    size = len(block) + len(rest)
    while rest and not rest.endswith(b"\n"):
        size += len(rest := file.readline(BLOCK))
    return _LinesRead(block[:start], size)


def _too_long() -> BadRecord:
    return BadRecord(Kind.TOO_LONG, f"the line is longer than {LONGEST >> 20} MiB; one document a line")
