"""Deduplicate a corpus: all steps in one go, or one step at a time on several nodes."""

import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

from mconv.convert.folders import lock
from mconv.errors import MconvError
from mconv.train.data.bad_records import REJECTED, Rejects, RejectTotals
from mconv.train.data.dedup.decide import Decisions, Tell, decide, load
from mconv.train.data.dedup.report import REMOVED, removed_lines, summary
from mconv.train.data.dedup.sign import Settings, Signed, sign
from mconv.train.data.dedup.work import Signatures, Work, useful
from mconv.train.data.dedup.write import Outputs, outputs, write
from mconv.train.data.pool import Ready, in_order
from mconv.train.data.reading.batch import Batch
from mconv.train.data.reading.expansion import MAX_EXPAND
from mconv.train.data.reading.formats import batches
from mconv.train.data.writing.appearing import appearing

PHASES = ("sign", "decide", "write")
DECISIONS = "decisions.npz"
SIGNED = 1 << 24
"""Bytes of input for which another process is worth its start."""


@dataclass(frozen=True, slots=True)
class Shard:
    """A share of the sources: number `index`, from 1, of `count`."""

    index: int = 1
    count: int = 1

    def of(self, sources: Sequence[Path]) -> list[int]:
        """Return the numbers of the sources in this share. Shares have about as many bytes each."""
        loads = [0] * self.count
        shares: list[list[int]] = [[] for _ in loads]
        for size, number in sorted(((path.stat().st_size, number) for number, path in enumerate(sources)), reverse=True):
            least = loads.index(min(loads))
            loads[least] += size
            shares[least].append(number)
        return sorted(shares[self.index - 1])


WHOLE = Shard()
"""All sources."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """The sources of a deduplication, its settings, and its output."""

    sources: Sequence[Path]
    out: Path
    settings: Settings
    verify: bool = True
    workers: int = 1
    on_bad_record: str = "stop"
    max_expand: float = MAX_EXPAND
    """Bytes that a packed source may give for each of its own."""
    overwrite: bool = False
    work: Path | None = None
    """Folder for the signatures, which is kept; None for a hidden one beside `out`, which is removed at the end."""


def dedup(
    job: Job, *, phase: str | None = None, shard: Shard = WHOLE, tell: Tell = lambda step, done: None
) -> dict[str, Any]:
    """Run all steps, or one of PHASES, and return a summary as values for JSON.

    The result does not depend on the number of workers or shards. Files appear under their names when they are complete.
    """
    if job.workers < 1:
        raise MconvError(f"--workers is {job.workers}; at least 1 is needed")
    made = outputs(job.out, job.sources)
    with _working(job, shared=phase in ("sign", "write")) as folder:
        work = Work(folder, job.sources, job.settings, job.on_bad_record, job.max_expand)
        if phase == "sign":
            return _sign(work, shard.of(job.sources), job.workers, tell)
        if phase == "decide":
            with _listing(job, made, []) as parts:
                return _decide(job, work, parts, tell)
        if phase == "write":
            return _write_share(job, work, made, shard, tell)
        return _all(job, work, made, tell)


@contextmanager
def _working(job: Job, *, shared: bool) -> Iterator[Path]:
    """Yield the working folder, locked. Raises MconvError if another run uses it."""
    folder = job.work or job.out.with_name(f".{job.out.name}.dedup")
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT)
    try:
        if not lock.take(descriptor, shared=shared):
            raise MconvError(f"another run of mconv data dedup uses {folder}; wait for it, or choose another place")
        try:
            yield folder
        except BaseException:
            worthless = not any(folder.glob("*.npy"))  # complete signatures serve the next run
            raise
        else:
            worthless = True
        finally:
            if job.work is None and worthless:
                shutil.rmtree(folder)
    finally:
        os.close(descriptor)


def _sign(work: Work, numbers: Sequence[int], workers: int, tell: Tell) -> dict[str, Any]:
    """Sign the sources of which no signatures are here that fit."""
    missing = [number for number in numbers if not work.signed(number)]
    size = sum(work.sources[number].stat().st_size for number in missing)
    results = in_order(
        _pieces(work, missing),
        Ready(partial(_signed, settings=work.settings, bad=work.on_bad_record)),
        workers=useful(workers, size, SIGNED),
    )
    done = 0
    for number, found in groupby(results, key=lambda pair: pair[0]):
        for count in work.store(number, (signed for _, signed in found if signed)):
            done += count
            tell("signatures", done)
    return {"signed": [str(work.sources[number]) for number in missing], "documents": done}


def _pieces(work: Work, numbers: Sequence[int]) -> Iterator[tuple[int, Batch | None]]:
    """Yield the batches of some sources, each with its source's number; None ends a source."""
    for number in numbers:
        for batch in batches(work.sources[number], [work.settings.key], max_expand=work.max_expand):
            yield number, batch
        yield number, None


def _signed(piece: tuple[int, Batch | None], settings: Settings, bad: str) -> tuple[int, Signed | None]:
    """Return the signatures of a batch."""
    number, batch = piece
    return number, None if batch is None else sign(batch, settings, bad)


@contextmanager
def _listing(job: Job, made: Outputs, records: Sequence[Path]) -> Iterator[list[Path]]:
    """Yield paths for the files of kept records, the list of removed ones, and the list of bad ones."""
    names = [*records, made.beside(REMOVED)]
    with appearing(names, overwrite=job.overwrite, maybe=made.beside(REJECTED)) as parts:
        yield parts


def _decide(job: Job, work: Work, parts: Sequence[Path], tell: Tell) -> dict[str, Any]:
    """Decide what is removed, list it and the bad records, and return the summary."""
    work.check_signed()
    signatures = work.signatures()
    *_, removed, rejected = parts
    facts = _reject(work, signatures, rejected)
    decisions = decide(work, signatures, verify=job.verify, workers=job.workers, tell=tell)
    decisions.save(work.folder / DECISIONS)
    with removed.open("w", encoding="utf-8") as file:
        file.writelines(removed_lines(work, signatures, decisions))
    return {**summary(work, signatures, decisions, verified=job.verify), **facts}


def _reject(work: Work, signatures: Signatures, path: Path) -> dict[str, Any]:
    """List the bad records of all sources. Raises FormatError where nothing else is there."""
    with closing(Rejects(path, RejectTotals())) as rejects:
        for number, array in enumerate(signatures.arrays):
            rejects.read(str(work.sources[number]), array.shape[1])
            for one in work.rejected(number):
                rejects.add(one)
    rejects.totals.check()
    return {"rejected": rejects.totals.counts, "first_rejected": rejects.totals.first}


def _write_share(job: Job, work: Work, made: Outputs, shard: Shard, tell: Tell) -> dict[str, Any]:
    """Write the records of a share of the sources that are kept."""
    work.check_signed()
    signatures, decisions = work.signatures(), load(work.folder / DECISIONS)
    targets = _targets(made, shard.of(job.sources))
    with appearing(list(targets), overwrite=job.overwrite) as parts:
        _write(work, signatures, decisions, targets, parts, tell)
    return {"written": [str(path) for path in targets]}


def _all(job: Job, work: Work, made: Outputs, tell: Tell) -> dict[str, Any]:
    """Run all steps."""
    targets = _targets(made, range(len(job.sources)))
    with _listing(job, made, list(targets)) as parts:
        _sign(work, range(len(job.sources)), job.workers, tell)
        found = _decide(job, work, parts, tell)
        _write(work, work.signatures(), load(work.folder / DECISIONS), targets, parts, tell)
    return found


def _targets(made: Outputs, numbers: Sequence[int]) -> dict[Path, list[int]]:
    """Return the files to write, and the sources of each."""
    targets: dict[Path, list[int]] = {}
    for number in numbers:
        targets.setdefault(made.targets[number], []).append(number)
    return targets


def _write(
    work: Work,
    signatures: Signatures,
    decisions: Decisions,
    targets: dict[Path, list[int]],
    parts: Sequence[Path],
    tell: Tell,
) -> None:
    """Write the kept records of each target to its part."""
    done = 0

    def count(records: int) -> None:
        nonlocal done
        done += records
        tell("records", done)

    for (target, numbers), part in zip(targets.items(), parts, strict=False):
        write(work, signatures, decisions, target, part, numbers, count)
