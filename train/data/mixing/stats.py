"""Measure token data completely: lengths of documents, how they end, and how often each id occurs."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from mconv.errors import FormatError
from mconv.train.data import facts
from mconv.train.data.index import CHUNK, Indexed
from mconv.train.data.mixing.prefixes import Prefix

COUNTED = 1 << 22
"""Ids from here on are counted together: a damaged file must not decide how much memory is used."""
PERCENTILES = (5, 25, 50, 75, 95, 99)
Counts = npt.NDArray[np.int64]
Progress = Callable[[int], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """The counts of one prefix, or of several together."""

    name: str
    documents: npt.NDArray[np.integer]
    """Tokens of each document."""
    sequences: int
    bytes: int
    dtypes: tuple[str, ...]
    ids: Counts
    """How often each id occurs; the last one counts all from `COUNTED` on."""
    last: Counts
    """How often each id is the last of a document."""
    vocab_size: int | None
    """Size of the tokenizer's vocabulary, where the record says it."""
    eod: int | None
    """The token that ends each document, where the record says it."""
    roles: dict[str, Any] | None = None
    record: dict[str, Any] | None = None


def measure(prefix: Prefix, progress: Progress = lambda n: None) -> Measured:
    """Read all of a prefix and count. Memory: 8 bytes an id of the vocabulary, about 40 a document."""
    data = prefix.open()
    documents = np.array(facts.documents_of(data))
    ids, last = _count(data, documents, progress)
    record = prefix.record
    return Measured(
        name=str(prefix.path), documents=documents, sequences=len(data), bytes=prefix.bytes,
        dtypes=(prefix.dtype,), ids=ids, last=last, vocab_size=record.vocab_size if record else None,
        eod=record.append_eod if record else None, record=facts.recorded(record),
        roles=_roles(prefix.open(1), progress) if prefix.talks else None,
    )  # fmt: skip


def _roles(data: Indexed, progress: Progress) -> dict[str, Any]:
    return facts.shares_of_roles(data.prefix, _chunks(data, progress))


def together(parts: Sequence[Measured]) -> Measured:
    """Return the counts of all prefixes as one; what their records say only where all say the same."""

    def same(values: list[Any]) -> Any:
        return values[0] if all(value == values[0] for value in values) else None

    return Measured(
        name=f"{len(parts)} prefixes", documents=np.concatenate([one.documents for one in parts]),
        sequences=sum(one.sequences for one in parts), bytes=sum(one.bytes for one in parts),
        dtypes=tuple(sorted({dtype for one in parts for dtype in one.dtypes})),
        ids=_added([one.ids for one in parts]), last=_added([one.last for one in parts]),
        vocab_size=same([one.vocab_size for one in parts]), eod=same([one.eod for one in parts]),
        record=same([one.record for one in parts]),
    )  # fmt: skip


def values(found: Measured, *, top: int) -> dict[str, Any]:
    """Return what was measured as plain values, with the `top` most frequent tokens."""
    tokens = int(found.ids.sum())
    return {
        "prefix": found.name, "documents": len(found.documents), "sequences": found.sequences, "tokens": tokens,
        "dtype": ", ".join(found.dtypes), "bytes": found.bytes, "lengths": lengths(found.documents),
        "histogram": histogram(found.documents), "eod": _ends(found), "vocabulary": _vocabulary(found, tokens, top),
        "roles": found.roles, "record": found.record,
    }  # fmt: skip


def lengths(documents: npt.NDArray[np.integer]) -> dict[str, int | float]:
    """Return the shortest, the longest, the mean and percentiles of the lengths of documents."""
    cuts = np.percentile(documents, PERCENTILES)
    named = {f"p{percent}": round(float(cut), 2) for percent, cut in zip(PERCENTILES, cuts, strict=True)}
    return {
        "min": int(documents.min()), **named, "max": int(documents.max()), "mean": round(float(documents.mean()), 2),
    }  # fmt: skip


def histogram(documents: npt.NDArray[np.integer]) -> list[dict[str, int]]:
    """Return documents and tokens by length, in bins that double: 0, 1, 2 to 3, 4 to 7, ..."""
    bins = np.frexp(documents.astype(np.float64))[1]  # 0 -> 0, 1 -> 1, 2 and 3 -> 2, 4 to 7 -> 3
    counts, tokens = np.bincount(bins), np.bincount(bins, weights=documents)
    first = int(np.flatnonzero(counts)[0])
    return [
        {"from": 2**number >> 1, "to": max(2**number - 1, 0), "documents": int(count), "tokens": int(share)}
        for number, (count, share) in enumerate(zip(counts, tokens, strict=True))
        if number >= first
    ]


def _count(data: Indexed, documents: npt.NDArray[np.integer], progress: Progress) -> tuple[Counts, Counts]:
    """Return how often each id occurs, and how often it is the last of a document."""
    ends = np.cumsum(documents, dtype=np.int64)[documents > 0] - 1
    ids = last = np.zeros(0, np.int64)
    start = 0
    for part in _chunks(data, progress):
        if part.min() < 0:
            raise FormatError(f"{data.tokens.path} holds the id {part.min()}; tokenize again")
        within = np.searchsorted(ends, [start, start + len(part)])
        capped = np.minimum(part, COUNTED) if part.itemsize > 2 else part
        ids = _added([ids, np.bincount(capped)])
        last = _added([last, np.bincount(capped[ends[slice(*within)] - start])])
        start += len(part)
    return ids, last


def _chunks(data: Indexed, progress: Progress) -> Iterator[npt.NDArray[np.integer]]:
    """Yield all tokens in parts."""
    for start in range(0, len(data.tokens), CHUNK):
        part = data.tokens[start : start + CHUNK]
        yield part
        progress(part.nbytes)


def _added(counts: Sequence[Counts]) -> Counts:
    """Return the sum of counts, which may have different lengths."""
    total = np.zeros(max(map(len, counts)), np.int64)
    for one in counts:
        total[: len(one)] += one
    return total


def _ends(found: Measured) -> dict[str, Any]:
    """Return how documents end: the token that ends most of them, or the one that the record says."""
    often = int(found.last.argmax()) if found.last.size else None
    token = found.eod if found.eod is not None else often
    ended = int(found.last[token]) if token is not None and token < len(found.last) else 0
    inside = int(found.ids[token]) - ended if token is not None and token < len(found.ids) else 0
    documents = int(np.count_nonzero(found.documents))
    return {
        "token": token, "recorded": found.eod is not None, "documents": ended,
        "share": round(ended / max(documents, 1), 6), "inside": inside,
    }  # fmt: skip


def _vocabulary(found: Measured, tokens: int, top: int) -> dict[str, Any]:
    """Return how much of the vocabulary occurs, and what occurs most."""
    used = int(np.count_nonzero(found.ids))
    size = found.vocab_size
    order = np.argsort(-found.ids, kind="stable")[: min(top, used)]
    return {
        "size": size, "used": used, "largest_id": len(found.ids) - 1,
        "unused_share": None if not size else round(max(size - used, 0) / size, 6),
        "top": [{"id": int(one), "count": int(found.ids[one]), "share": round(int(found.ids[one]) / max(tokens, 1), 6)}
                for one in order],
    }  # fmt: skip
