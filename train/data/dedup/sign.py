"""Sign documents: a digest of the text, and for each band a number that similar documents are likely to share."""

import hashlib
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import xxhash

from mconv import extras
from mconv.train.data.bad_records import POLICIES, BadRecord, Rejected
from mconv.train.data.dedup.grams import parts, rolled
from mconv.train.data.dedup.scheme import Scheme
from mconv.train.data.reading.batch import Batch

NONE = np.uint64(2**64 - 1)
"""The number of a band of a document without n-grams: it shares no bucket."""
DIGEST, LINE, BANDS = slice(0, 2), 2, 3
"""Columns of a signature: 128 bits of the text's digest, the record's line or row (0: a bad record), then the bands."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """All that decides which documents are duplicates."""

    key: str
    """Field that holds the text."""
    threshold: float
    """Jaccard similarity of n-grams from which on two documents are duplicates."""
    ngram: int
    """Words or characters of an n-gram."""
    unit: str
    """What n-grams are made of: `word` or `character`."""
    scheme: Scheme
    seed: int
    """Seed of the permutations."""

    @property
    def columns(self) -> int:
        """Numbers of a signature, of 8 bytes each."""
        return BANDS + self.scheme.bands


@dataclass(frozen=True, slots=True)
class Signed:
    """The signatures of a batch."""

    columns: npt.NDArray[np.uint64]
    """A row for each column, a column for each record."""
    rejected: list[Rejected]


def sign(batch: Batch, settings: Settings, on_bad_record: str) -> Signed:
    """Return the signatures of a batch. A bad record is an error, or under `skip` has a line of 0."""
    found = list(batch.texts([settings.key]))
    policy = POLICIES[on_bad_record]
    rejected = [policy(value, place) for place, value in found if isinstance(value, BadRecord)]
    texts = ["" if isinstance(value, BadRecord) else value[0] for _, value in found]
    columns = np.empty((settings.columns, len(found)), np.uint64)
    columns[DIGEST] = _digests(texts).T
    columns[LINE] = [0 if isinstance(value, BadRecord) else place.line for place, value in found]
    columns[BANDS:] = _bands(texts, settings).T
    return Signed(columns, rejected)


def _digests(texts: Sequence[str]) -> npt.NDArray[np.uint64]:
    """Return 128 bits of BLAKE2b of each text, with which nobody can make two texts pass for one."""
    joined = b"".join(hashlib.blake2b(text.encode(), digest_size=16).digest() for text in texts)
    return np.frombuffer(joined, "<u8").reshape(-1, 2)


def _bands(texts: Sequence[str], settings: Settings) -> npt.NDArray[np.uint64]:
    """Return the number of each band of each text."""
    scheme, width, minhash = settings.scheme, 4 * settings.scheme.rows, _rensa().RMinHash
    hashes = minhash.hash_token_sets([parts(text, settings.unit) for text in texts])
    matrix = minhash.digest_matrix_from_flat_token_hashes(
        *rolled(hashes, settings.ngram), scheme.permutations, settings.seed
    )
    minima = memoryview(b"".join(array("I", row).tobytes() for row in matrix.to_rows()))
    numbers = [xxhash.xxh3_64_intdigest(minima[at : at + width]) for at in range(0, len(minima), width)]
    found = np.array(numbers, np.uint64).reshape(len(texts), scheme.bands)
    found[[not one for one in hashes]] = NONE
    return found


def _rensa() -> Any:
    extras.need("dedup", "rensa", to="mconv data dedup")
    import rensa

    return rensa


def algorithm() -> str:
    """Return what signatures depend on besides their settings: other versions may sign in another way."""
    return f"rensa {_rensa().RMinHash.ALGORITHM_VERSION}"
