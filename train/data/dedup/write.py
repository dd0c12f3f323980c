"""Write the records that are kept, as they were read."""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mconv.errors import MconvError, refuse
from mconv.train.data.dedup.decide import Decisions
from mconv.train.data.dedup.sign import LINE
from mconv.train.data.dedup.wanted import placed
from mconv.train.data.dedup.work import Signatures, Work
from mconv.train.data.dedup.writers import KINDS, SUFFIXES, Kept
from mconv.train.data.reading.batch import Batch
from mconv.train.data.reading.formats import format_of
from mconv.train.data.reading.named import shown
from mconv.train.data.reading.packed import without_packing


@dataclass(frozen=True, slots=True)
class Outputs:
    """Where the kept records of each source go."""

    out: Path
    targets: Sequence[Path]
    """For each source the file that its records go to."""
    folder: bool
    """Whether each source has a file of its own in the folder `out`; otherwise `out` is the one file."""

    def beside(self, ending: str) -> Path:
        """Return the path of a file about the output, which lies beside it."""
        name = self.out.name if self.folder else without_packing(self.out).stem
        return self.out.with_name(name + ending)


def outputs(out: Path, sources: Sequence[Path]) -> Outputs:
    """Return where the kept records go: a name that ends like a file of records is one file, any other a folder.

    Raises MconvError where a format is not written, or a file would be its own output.
    """
    refuse(
        [f"{shown(path)}: dedup writes {', '.join(SUFFIXES)} only; `mconv data export` makes one of them"
         for path in sources if format_of(path).batches not in KINDS], doing="writing the kept records",
    )  # fmt: skip
    folder = without_packing(out).suffix not in SUFFIXES
    made = Outputs(out, _below(out, sources) if folder else [out] * len(sources), folder)
    kinds = {KINDS[format_of(path).batches].name for path in (sources if folder else [*sources, out])}
    if not folder and len(kinds) > 1:
        raise MconvError(f"--out {out} cannot take in {' and '.join(sorted(kinds))}; name a folder, or another ending")
    _check_apart(made, sources)
    return made


def _below(out: Path, sources: Sequence[Path]) -> list[Path]:
    """Return a path in the folder `out` for each source: its own, below the folder that all share."""
    paths = [path.parent.resolve() / path.name for path in sources]
    shared = os.path.commonpath([path.parent for path in paths])
    return [out / path.relative_to(shared) for path in paths]


def _check_apart(made: Outputs, sources: Sequence[Path]) -> None:
    """Raise MconvError where an output is a source, or the folder has files that this run does not replace."""
    resolved = {path.resolve() for path in sources}
    if len(resolved) < len(sources):
        raise MconvError("a source is named twice: all of it would be a duplicate; name each once")
    if taken := [path for path in made.targets if path.resolve() in resolved]:
        raise MconvError(f"--out {made.out} would replace the source {min(taken)}; choose another place")
    if made.folder and made.out.is_dir():
        names = {*made.targets}
        found = (path for path in made.out.rglob("*") if path.is_file() and not path.name.startswith("."))
        others = sorted(path for path in found if path not in names)
        refuse(
            [f"{path} is not of this run, and would lie among what it keeps; remove it or choose another --out"
             for path in others], doing="writing the kept records",
        )  # fmt: skip


def write(
    work: Work, signatures: Signatures, decisions: Decisions, target: Path, part: Path, numbers: Sequence[int],
    tell: Callable[[int], None],
) -> None:  # fmt: skip
    """Write what is kept of some sources to `part`, which will be `target`."""
    first = work.sources[numbers[0]]
    with closing(KINDS[format_of(target).batches].writer(part, target, first)) as writer:
        for number in numbers:
            for batch, kept in _kept(work, signatures, decisions, number):
                writer.write(batch, kept)
                tell(len(kept))


def _kept(work: Work, signatures: Signatures, decisions: Decisions, number: int) -> Iterator[tuple[Batch, Kept]]:
    """Yield each batch of a source, and which of its records are kept: neither bad nor duplicates."""
    first, lines_ = int(signatures.starts[number]), signatures.arrays[number][LINE]
    for start, count, batch in placed(work, number, first, None):
        kept = lines_[start - first : start - first + count] > 0
        here = decisions.removed[slice(*np.searchsorted(decisions.removed, (start, start + count)))]
        kept[here - start] = False
        yield batch, kept
