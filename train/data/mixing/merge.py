"""Merge prefixes into one, in their order."""

import dataclasses
import json
import random
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from mconv.errors import FormatError, MconvError, refuse
from mconv.train.data.index import ROLE, TEXT, with_ending
from mconv.train.data.mixing import records
from mconv.train.data.mixing.join import join
from mconv.train.data.mixing.prefixes import PAIR, RECORD, Prefix, dtype_problems, open_all, refuse_overlaps, under
from mconv.train.data.staged import StagedRun, made_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Merged:
    """What was merged, and into what."""

    prefix: Path
    sources: tuple[Path, ...]
    documents: int
    sequences: int
    tokens: int
    bytes: int
    dtype: str
    recorded: bool
    """True if the merged data has a record of its tokenizer."""


def ordered(paths: Sequence[Path], out: Path, *, seed: int | None = None) -> list[Prefix]:
    """Open what is to be merged into `out`: folders searched, each in the order of its names, or all shuffled.

    Raises FormatError on anything that cannot be one dataset: kinds, dtypes, marks of documents that differ.
    """
    groups = [under(path, leaving_out=[out]) for path in paths]
    refuse_overlaps(groups, "merging")
    names = [name for group in groups for name in group]
    if seed is not None:
        random.Random(seed).shuffle(names)
    found = open_all(names)
    marked = [one.text.ends > 0 for one in found]
    problems = dtype_problems(found)
    if len(set(marked)) > 1 and not found[0].talks:
        problems.append(
            f"{found[marked.index(False)].path} does not mark its documents, {found[marked.index(True)].path} does; "
            f"tokenize it again"
        )
    refuse(problems, doing="merging", kind=FormatError)
    return found


def merge(
    found: Sequence[Prefix], out: Path, *, allowed: Collection[str] = (), overwrite: bool = False,
    progress: Callable[[int], None] = lambda n: None,
) -> Merged:  # fmt: skip
    """Write the prefix `out` from opened ones, and their record if they have one. Nothing appears before it is whole."""
    records.check(found, allowed)
    record = records.joined(found)
    endings = (TEXT, ROLE) if found[0].talks else ("",)
    outputs = [with_ending(out, f"{kind}{ending}") for kind in endings for ending in PAIR]
    recorded = with_ending(out, f"{endings[0]}{RECORD}")
    if (there := [str(path) for path in (*outputs, recorded) if path.exists()]) and not overwrite:
        raise MconvError(f"{', '.join(there)}: already there; pass --overwrite, or another prefix")
    run = StagedRun.of(out)
    with run.staging.alone():
        run.begin(made_of([]), None, resume=False)
        try:
            for number in range(len(endings)):
                data, index = map(run.path, outputs[2 * number : 2 * number + 2])
                join([one.heads[number] for one in found], data, index, progress)
            if record:
                run.path(recorded).write_text(json.dumps(dataclasses.asdict(record), indent=2) + "\n")
            run.publish(outputs, recorded)
        finally:
            run.staging.clear()
    return Merged(
        prefix=out, sources=tuple(one.path for one in found), documents=sum(one.documents for one in found),
        sequences=sum(one.text.sequences for one in found), tokens=sum(one.tokens for one in found),
        bytes=sum(path.stat().st_size for path in outputs), dtype=found[0].dtype,
        recorded=record is not None,
    )  # fmt: skip
