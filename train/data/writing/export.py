"""Write the records of any sources in another format."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mconv.convert.folders.staging import Staging, remove, sync
from mconv.errors import FormatError, MconvError
from mconv.train.data.bad_records import REJECTED, BadRecord, Kind, OnBad, Rejects, RejectTotals, stop
from mconv.train.data.index import with_ending
from mconv.train.data.reading.batch import Batch
from mconv.train.data.reading.expansion import MAX_EXPAND
from mconv.train.data.reading.fields import in_words
from mconv.train.data.reading.formats import batches
from mconv.train.data.reading.named import is_dataset
from mconv.train.data.writing.targets import LAYOUT, Layout, Target, target_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """What is written of a record."""

    keys: Sequence[str] | None = None
    """Fields; None: all."""
    source_column: str | None = None
    """Field that gets the name of the record's file, up to its first dot."""

    def of(self, record: Any, source: str) -> dict[str, Any]:
        """Return the fields of a record. Raises BadRecord if it has not those that are wanted."""
        if isinstance(record, BadRecord):
            raise record
        if not isinstance(record, dict):
            raise BadRecord(Kind.NO_OBJECT, f"the record is {in_words(record)}, and no object with fields")
        if missing := [key for key in self.keys or () if key not in record]:
            raise BadRecord(Kind.NO_FIELD, f"no field {missing[0]!r} (the record has {sorted(record)[:20]})")
        chosen = record if self.keys is None else {key: record[key] for key in self.keys}
        if self.source_column is None:
            return chosen
        if self.source_column in chosen:
            raise BadRecord(
                Kind.CONTRADICTION, f"the record has a field {self.source_column!r}; name another --source-column"
            )
        return {self.source_column: source, **chosen}


ALL = Selection()


@dataclass(slots=True)
class Exported:
    """What was written."""

    records: int = 0
    empty: int = 0
    """Texts that are left out of a text file because nothing is in them."""
    rejects: RejectTotals = field(default_factory=RejectTotals)


def export(
    sources: Sequence[Path],
    outs: Sequence[Path],
    *,
    select: Selection = ALL,
    layout: Layout = LAYOUT,
    bad: OnBad = stop,
    max_expand: float = MAX_EXPAND,
    overwrite: bool = False,
    progress: Callable[[int, int], None] = lambda records, size: None,
) -> Exported:
    """Write the records of `sources`, in their order, to each of `outs`, whose names say the formats.

    The outputs get their names when all is written. What they replace is removed then, with `overwrite` alone.
    """
    for out in outs:
        target_of(out)
    listed = with_ending(outs[0], REJECTED)
    _check_apart(sources, [*outs, listed], overwrite=overwrite)
    staging = Staging.of(outs[0])
    with staging.alone():
        staging.clear()
        staging.partial.mkdir(parents=True)
        parts = {staging.partial / f"{number}-{out.name}": out for number, out in enumerate(outs)}
        rejected = staging.partial / "rejected"
        try:
            made = Exported()
            with closing(Rejects(rejected, made.rejects)) as rejects, ExitStack() as stack:
                targets = [stack.enter_context(target_of(out)(part, out, layout)) for part, out in parts.items()]
                for batch in _read(sources, select, max_expand):
                    progress(_write(batch, targets, select, bad, rejects, made), batch.size)
                made.rejects.check()
            if not made.records:
                raise FormatError("no record in the input; nothing is written")
            _publish({rejected: listed, **parts})
        finally:
            staging.clear()
    return made


def _read(sources: Sequence[Path], select: Selection, max_expand: float) -> Iterator[Batch]:
    """Yield the batches of all sources."""
    for path in sources:
        yield from batches(path, select.keys, max_expand=max_expand)


def _write(
    batch: Batch, targets: Sequence[Target], select: Selection, bad: OnBad, rejects: Rejects, made: Exported
) -> int:
    """Write the records of a batch to all targets; returns how many were read."""
    rows: list[list[Any]] = []
    records, source = [*batch.records()], Path(batch.file).name.partition(".")[0]
    for record in records:
        try:
            chosen = select.of(record.value, source)
            rows.append([target.prepared(chosen) for target in targets])
        except BadRecord as error:
            rejects.add(bad(error, record.place))
    for target, prepared in zip(targets, zip(*rows, strict=True), strict=False):
        target.write([row for row in prepared if row is not None], batch.size)
    made.records += len(rows)
    made.empty += sum(None in row for row in rows)
    rejects.read(batch.file, len(records))
    return len(records)


def _check_apart(sources: Sequence[Path], outs: Sequence[Path], *, overwrite: bool) -> None:
    """Raise MconvError where an output is there already, is a source, or is named twice."""
    if len({out.absolute() for out in outs}) < len(outs):
        raise MconvError("an output is named twice; name each once")
    there = [str(out) for out in outs if out.exists()]
    if there and not overwrite:
        raise MconvError(f"{', '.join(there)}: already there; pass --overwrite, or name another output")
    for out in outs:
        own = [
            path
            for path in sources
            if not is_dataset(path) and out.resolve() in (path.resolve(), *path.resolve().parents)
        ]
        if own:
            raise MconvError(f"--out {out} would replace the source {own[0]}; choose another place")


def _publish(parts: dict[Path, Path]) -> None:
    """Give what is written its names. An old reject file goes, too."""
    for part, out in parts.items():
        if part.exists():
            sync(part)
        if out.is_dir():
            remove(out)
        else:
            out.unlink(missing_ok=True)
    for part, out in parts.items():
        if part.exists():
            part.rename(out)
            sync(out.parent)
