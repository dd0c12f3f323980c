"""Read files, tokenize them in several processes, and write pairs of `.bin` and `.idx` in the order of the input."""

import dataclasses
import json
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from mconv.errors import MconvError
from mconv.train.data.bad_records import Rejects, RejectTotals
from mconv.train.data.encoded import Encoded
from mconv.train.data.index import with_ending
from mconv.train.data.pairs import PairTotals, PairWriter, write_index
from mconv.train.data.pool import Work, in_order
from mconv.train.data.reading.batch import Batch
from mconv.train.data.reading.expansion import MAX_EXPAND
from mconv.train.data.reading.formats import batches
from mconv.train.data.record import Tokenized
from mconv.train.data.staged import StagedRun

PART = 1 << 27
"""Bytes of the input after which a run that is killed need not begin again."""
Progress = Callable[[int, int], None]
"""A function that is told of records and bytes that were tokenized."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunOptions:
    """How a run goes; none of it changes the data."""

    workers: int = 1
    max_expand: float = MAX_EXPAND
    """Bytes that a packed file may give for each of its own."""
    resume: bool = False
    overwrite: bool = False
    progress: Progress = lambda records, size: None
    command: str | None = None
    """The command line, for those who find an unfinished run."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """What a run reads and writes."""

    sources: Sequence[Path]
    columns: Sequence[str] | None
    """Fields that are read from tables; None: all."""
    job: Work[Batch, Encoded]
    pairs: Sequence[Path]
    """Prefix of each pair."""
    records: Sequence[Path]
    """Prefixes that get a record (`.mconv.json`)."""
    rejected: Path
    """The reject file."""
    dtype: str
    documents: bool
    """True if each sequence is a document; Megatron-LLM marks none in instruction data."""
    made_of: dict[str, Any]

    @property
    def outputs(self) -> list[Path]:
        """All files but the reject file."""
        pairs = [with_ending(prefix, suffix) for prefix in self.pairs for suffix in (".bin", ".idx")]
        return [*pairs, *(with_ending(prefix, ".mconv.json") for prefix in self.records)]


@dataclass(slots=True, kw_only=True)
class Totals:
    """What was written so far, and how far the input is read."""

    source: int = 0
    """The source that is being read."""
    batch: int = 0
    """Batches of it that are written."""
    size: int = 0
    """Bytes of the input."""
    pairs: list[PairTotals] = field(default_factory=list)
    counts: dict[str, dict[str, int]] = field(default_factory=dict)
    rejects: RejectTotals = field(default_factory=RejectTotals)

    @classmethod
    def of(cls, state: dict[str, Any], pairs: int) -> "Totals":
        """Return totals that were saved, or those of a start."""
        found = state or {"pairs": [{}] * pairs, "rejects": {}}
        nested = {"pairs": [PairTotals(**pair) for pair in found["pairs"]], "rejects": RejectTotals(**found["rejects"])}
        return cls(**{**found, **nested})

    def add(self, found: Encoded) -> None:
        """Add the counts of a batch."""
        self.size += found.size
        for name, counts in found.counts.items():
            self.counts[name] = dict(Counter(self.counts.get(name, {})) + counts)


Describe = Callable[[Totals], Sequence[Tokenized]]
"""A function that returns the record of each of `Task.records`. Raises FormatError where there is nothing to train on."""


def write(task: Task, describe: Describe, prefix: Path, options: RunOptions) -> list[Tokenized]:
    """Write the pairs of a task and their records; all files appear under their names at the end."""
    run = StagedRun.of(prefix)
    with run.staging.alone():
        _check_absent(task, run, options)
        state = run.begin(task.made_of, options.command, resume=options.resume)
        totals = Totals.of(state, len(task.pairs))
        try:
            if not run.is_whole:
                _fill(task, run, totals, options)
            made = [*describe(totals)]
            if not run.is_whole:
                _finish(task, run, totals, made)
            run.publish(task.outputs, task.rejected)
        except BaseException:
            if not run.is_kept:
                run.staging.clear()
            raise
    return made


def _check_absent(task: Task, run: StagedRun, options: RunOptions) -> None:
    """Raise MconvError if a file of this name is there, unless it is this run's own, or may be replaced."""
    there = [str(path) for path in (*task.outputs, task.rejected) if path.exists()]
    if there and not options.overwrite and not (options.resume and run.is_whole):
        raise MconvError(f"{', '.join(there)}: already there; pass --overwrite, or another prefix")


def _fill(task: Task, run: StagedRun, totals: Totals, options: RunOptions) -> None:
    """Write all tokens to the hidden folder, from where an earlier run stopped."""
    options.progress(sum(totals.rejects.records.values()), totals.size)
    with ExitStack() as stack:
        rejects = stack.enter_context(closing(Rejects(run.path(task.rejected), totals.rejects)))
        pairs = zip(task.pairs, totals.pairs, strict=True)
        writers = [stack.enter_context(closing(PairWriter(*_parts(run, pair), task.dtype, so_far)))
                   for pair, so_far in pairs]  # fmt: skip
        files: list[Any] = [*writers, rejects]
        for found in _tokenized(task, totals, options):
            _add(found, totals, writers, rejects)
            options.progress(found.records, found.size)
            if totals.size // PART > (totals.size - found.size) // PART:
                for file in files:
                    file.sync()
                _save(task, run, totals)
        for file in files:
            file.sync()
    totals.rejects.check()


def _parts(run: StagedRun, prefix: Path) -> tuple[Path, Path]:
    """Return where the ids of a pair lie until all are there, and the lengths of its sequences."""
    return run.path(with_ending(prefix, ".bin")), run.path(with_ending(prefix, ".lengths"))


def _tokenized(task: Task, totals: Totals, options: RunOptions) -> Iterator[Encoded]:
    """Yield the batches behind those of `totals`, tokenized, and note there how far each of them goes."""
    places: deque[tuple[int, int]] = deque()

    def read() -> Iterator[Batch]:
        skipped = totals.batch
        for source in range(totals.source, len(task.sources)):
            found = enumerate(batches(task.sources[source], task.columns, max_expand=options.max_expand), 1)
            for number, batch in islice(found, skipped, None):
                places.append((source, number))
                yield batch
            skipped = 0

    for found in in_order(read(), task.job, workers=options.workers):
        totals.source, totals.batch = places.popleft()
        yield found


def _add(found: Encoded, totals: Totals, writers: Sequence[PairWriter], rejects: Rejects) -> None:
    """Append the tokens of a batch, and count."""
    for writer, sequences in zip(writers, found.pairs, strict=True):
        writer.add(sequences)
    rejects.read(found.file, found.records)
    for rejected in found.rejected:
        rejects.add(rejected)
    totals.add(found)


def _save(task: Task, run: StagedRun, totals: Totals) -> None:
    """Write down how far the run is; the disk holds all of that."""
    run.save(dataclasses.asdict(totals), task.sources[: totals.source])


def _finish(task: Task, run: StagedRun, totals: Totals, made: Sequence[Tokenized]) -> None:
    """Write the index of each pair, and the records."""
    for prefix in task.pairs:
        write_index(run.path(with_ending(prefix, ".idx")), _parts(run, prefix)[1], task.dtype, documents=task.documents)
    for prefix, record in zip(task.records, made, strict=True):
        path = run.path(with_ending(prefix, ".mconv.json"))
        path.write_text(json.dumps(dataclasses.asdict(record), indent=2) + "\n")
    _save(task, run, totals)
