"""Token ids on their way from a worker to the files."""

from array import array
from collections import Counter
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from mconv.errors import FormatError
from mconv.train.data.bad_records import Rejected


class Sequences(NamedTuple):
    """Sequences of ids, one behind the other."""

    ids: npt.NDArray[np.integer]
    """The ids of all, in the dtype of the file."""
    lengths: npt.NDArray[np.int32]
    """Ids of each sequence."""


class Encoded(NamedTuple):
    """The tokens of a batch."""

    file: str
    records: int
    """Records that were read, bad ones among them."""
    size: int
    """Bytes of the input."""
    pairs: list[Sequences]
    """Sequences for each pair of .bin and .idx."""
    counts: dict[str, Counter[str]]
    """Counts for the records beside the data."""
    rejected: list[Rejected]
    """Bad records, in their order."""


def joined(documents: Iterable[list[int]], *, bos: int | None = None, eos: int | None = None) -> Sequences:
    """Return documents that are not empty one behind the other: EOS behind each, BOS before it unless it is there."""
    ids, lengths, end = array("I"), array("i"), 0
    for document in documents:
        if document:
            if bos is not None and document[0] != bos:
                ids.append(bos)
            ids.fromlist(document)
            if eos is not None:
                ids.append(eos)
            lengths.append(len(ids) - end)
            end = len(ids)
    return Sequences(np.frombuffer(ids, np.uint32), np.frombuffer(lengths, np.int32))


def stored(ids: npt.NDArray[np.integer], dtype: str, vocab_size: int) -> npt.NDArray[np.integer]:
    """Return ids in the dtype of the file. Raises FormatError on one beyond the vocabulary: a cast could wrap it."""
    if ids.size and (found := int(ids.max())) >= vocab_size:
        raise FormatError(f"the tokenizer gave id {found}, beyond its own vocabulary of {vocab_size}")
    return ids.astype(dtype)
