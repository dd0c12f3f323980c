"""Read some documents of the input again."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import numpy.typing as npt

from mconv.train.data.dedup.clusters import Grams
from mconv.train.data.dedup.grams import hashed, ngrams
from mconv.train.data.dedup.sign import Settings
from mconv.train.data.dedup.work import Ids, Signatures, Work, useful
from mconv.train.data.pool import Ready, in_order
from mconv.train.data.reading.batch import Batch
from mconv.train.data.reading.formats import batches
from mconv.train.data.reading.lines import JsonLines

NGRAMS = "ngrams"
"""File of the working folder with the n-grams of the candidates."""
READ = 20_000
"""Documents for which another process is worth its start."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """A batch, and which of its records are wanted."""

    batch: Batch
    records: list[int]
    """Their numbers within the batch, sorted."""

    def texts(self, key: str) -> list[str]:
        """Return their texts."""
        texts = [value for _, value in self.batch.texts([key])]
        return [texts[number][0] for number in self.records]


def narrowed(batch: Batch, records: list[int]) -> Wanted:
    """Return the records of a batch, without its other lines where it has lines."""
    if not isinstance(batch, JsonLines):
        return Wanted(batch, records)
    lines = [line for _, line in batch.lines()]
    return Wanted(replace(batch, block=b"\n".join(lines[number] for number in records)), [*range(len(records))])


def wanted(work: Work, signatures: Signatures, ids: Ids) -> Iterator[Wanted]:
    """Yield the batches that hold some of the documents `ids`, which are sorted."""
    for number in range(len(work.sources)):
        first, last = signatures.starts[number : number + 2].tolist()
        here = ids[np.searchsorted(ids, first) : np.searchsorted(ids, last)]
        if not len(here):
            continue
        for start, count, batch in placed(work, number, first, [work.settings.key]):
            if start > here[-1]:
                break
            inside = here[np.searchsorted(here, start) : np.searchsorted(here, start + count)]
            if len(inside):
                yield narrowed(batch, (inside - start).tolist())


def placed(work: Work, number: int, first: int, keys: list[str] | None) -> Iterator[tuple[int, int, Batch]]:
    """Yield each batch of a source with its first document and its number of documents, as they were signed."""
    path, counts = work.sources[number], work.batches(number)
    for count, batch in zip(counts, batches(path, keys, max_expand=work.max_expand), strict=True):
        yield first, count, batch
        first += count


def texts(work: Work, signatures: Signatures, ids: Ids) -> Iterator[str]:
    """Yield the texts of some documents, which are sorted."""
    for one in wanted(work, signatures, ids):
        yield from one.texts(work.settings.key)


def grams(work: Work, signatures: Signatures, ids: Ids, *, workers: int, tell: Callable[[int], None]) -> Grams:
    """Return the n-grams of some documents, which are sorted, mapped from a file of the working folder."""
    ends, path = [np.empty(0, np.int64)], work.folder / NGRAMS
    end = done = 0
    with path.open("wb") as file:
        for parts in in_order(
            wanted(work, signatures, ids),
            Ready(partial(_hashed, settings=work.settings)),
            workers=useful(workers, len(ids), READ),
        ):
            for part in parts:
                part.tofile(file)
            ends.append(end + np.cumsum([len(part) for part in parts], dtype=np.int64))
            end, done = int(ends[-1][-1]), done + len(parts)
            tell(done)
    data = np.asarray(np.memmap(path, np.uint64, "r")) if end else np.empty(0, np.uint64)
    return Grams(ids, np.concatenate(ends), data)


def _hashed(one: Wanted, settings: Settings) -> list[npt.NDArray[np.uint64]]:
    """Return the hashed n-grams of each wanted text of a batch."""
    return [hashed(ngrams(text, settings.ngram, settings.unit)) for text in one.texts(settings.key)]
