"""Shuffle files of lines into one, which is written whole or not at all."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO

from mconv.convert.folders.staging import PARTIAL
from mconv.errors import FormatError, MconvError, refuse
from mconv.train.data.bad_records import BadRecord
from mconv.train.data.preparing.shuffle import shuffled
from mconv.train.data.reading.batch import Batch
from mconv.train.data.reading.formats import batches, format_of
from mconv.train.data.reading.lines import JsonLines, json_lines, text_lines
from mconv.train.data.writing.appearing import appearing
from mconv.train.data.writing.packing import PACKERS

Progress = Callable[[int], None]


def are_json_lines(paths: Iterable[Path]) -> bool:
    """Return whether all files hold JSON lines, which need not be collected."""
    return all(format_of(path).batches is json_lines for path in paths)


def shuffle(paths: Sequence[Path], out: Path, *, seed: int, buffer: int, progress: Progress = lambda n: None) -> int:
    """Write the lines of files of one kind, shuffled, as they are; returns how many. A last line without an end gets one.

    Raises MconvError where they are of several kinds, or no files of lines.
    """
    _check_kinds(paths, out)
    scratch = out.with_name(f"{PARTIAL}{out.name}.shuffle")
    count = 0
    with _writing(out) as file:
        for line in shuffled(_lines(paths, progress), seed=seed, buffer=buffer, scratch=scratch):
            file.write(line)
            count += 1
        _check_any(count)
    return count


def _check_any(count: int) -> None:
    if not count:
        raise FormatError("no document in the input")


def _check_kinds(paths: Sequence[Path], out: Path) -> None:
    kinds = {format_of(path).batches for path in paths}
    problems = [f"{path}: only files of lines can be shuffled (.jsonl, .txt)" for path in paths if _is_table(path)]
    if len(kinds | {format_of(out).batches}) > 1 and not problems:
        problems.append(f"{out} cannot take in all files, because their formats differ; shuffle .txt and .jsonl apart")
    refuse(problems, doing="shuffling", kind=MconvError)


def _is_table(path: Path) -> bool:
    return format_of(path).batches not in (json_lines, text_lines)


def _lines(paths: Sequence[Path], progress: Progress) -> Iterator[bytes]:
    """Yield the lines of files that are not blank, as they are. Raises FormatError at one that is too long to be read."""
    for batch in (batch for path in paths for batch in batches(path, None)):
        yield from (line + b"\n" for line in _lines_of(batch))
        progress(batch.size)


def _lines_of(batch: Batch) -> Iterator[bytes]:
    if isinstance(batch, JsonLines):
        yield from (line for _, line in batch.lines())
        return
    for place, value in batch.records():
        raise BadRecord(value.kind, value.reason, place)


@contextmanager
def _writing(out: Path) -> Iterator[IO[bytes]]:
    """Yield a file to write to, packed by its suffix; it replaces what is at `out` when it is whole."""
    with appearing([out], overwrite=True) as (part,), ExitStack() as stack:
        file = stack.enter_context(part.open("wb"))
        yield stack.enter_context(PACKERS[out.suffix](file)) if out.suffix in PACKERS else file
