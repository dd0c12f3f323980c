"""Describe token data for people: counts and lengths from the index, ids and endings from samples of the .bin."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mconv.errors import FormatError
from mconv.train.data.index import CHUNK, ROLE, TEXT, Indexed, open_index, with_ending
from mconv.train.data.record import Tokenized, read_record

SAMPLED = 16 << 20
"""Tokens of a .bin that are read at most; they are spread over it."""
ENDINGS = 1000
"""Documents whose last token is looked at, spread over the data."""
ROLES = ("system", "prompter", "assistant")


def prefix_of(path: Path) -> Path | None:
    """Return the prefix of token data that a path names: itself, its .bin or its .idx; None if it names none.

    Of instruction data it is the prefix without -text and -role, whichever of the four files was named.
    """
    if path.is_dir():
        return None
    prefix = path.with_name(path.name[:-4]) if path.name.endswith((".bin", ".idx")) else path
    for ending in (TEXT, ROLE):
        outer = prefix.with_name(prefix.name.removesuffix(ending))
        if prefix.name.endswith(ending) and _is_talk(outer):
            return outer
    if _is_talk(prefix) or with_ending(prefix, ".idx").is_file() or (path.name.endswith(".idx") and path.is_file()):
        return prefix
    return None


def prefixes_of(folder: Path) -> list[Path]:
    """Return the prefixes of all token data in a folder."""
    found = {prefix for path in folder.glob("*.idx") if (prefix := prefix_of(path))}
    return sorted(found)


def _is_talk(prefix: Path) -> bool:
    return bool(prefix.name) and any(with_ending(prefix, f"{ending}.idx").is_file() for ending in (TEXT, ROLE))


def facts(prefix: Path) -> dict[str, Any]:
    """Return what the data of a prefix is. Raises FormatError, with the file's name, on what is missing or damaged."""
    if not _is_talk(prefix):
        return _of_text(prefix, open_index(prefix), "token data")
    text, role = open_index(with_ending(prefix, TEXT)), open_index(with_ending(prefix, ROLE))
    if not np.array_equal(text.lengths, role.lengths):
        raise FormatError(
            f"{role.prefix} does not fit {text.prefix.name}: the lengths of their conversations differ; make both again"
        )
    known = _of_text(prefix, text, "instruction data (tokens, and who says each of them)")
    size = sum(with_ending(role.prefix, ending).stat().st_size for ending in (".bin", ".idx"))
    return {**known, "bytes": known["bytes"] + size, "roles": shares_of_roles(role.prefix, _parts(role))}


def _of_text(prefix: Path, data: Indexed, what: str) -> dict[str, Any]:
    record, documents = read_record(data.prefix), documents_of(data)
    ids, looked_at = _ids(data)
    return {
        "prefix": str(prefix),
        "what": what,
        "documents": len(documents),
        "sequences": len(data),
        "tokens": len(data.tokens),
        "dtype": data.tokens.dtype.name,
        "bytes": sum(with_ending(data.prefix, ending).stat().st_size for ending in (".bin", ".idx")),
        "lengths": {"min": int(documents.min()), "median": float(np.median(documents)), "max": int(documents.max())},
        "ids": {"min": ids[0], "max": ids[1], "looked_at": looked_at},
        "endings": _endings(data, record),
        "record": recorded(record),
    }


def documents_of(data: Indexed) -> npt.NDArray[np.integer]:
    """Return the tokens of each document; where the writer marked none, a sequence is one."""
    if not len(data.ends):
        return data.lengths
    after = np.concatenate([[0], np.cumsum(data.lengths, dtype=np.int64)])
    return np.diff(after[np.concatenate([[0], data.ends])])


def _ids(data: Indexed) -> tuple[tuple[int, int], int]:
    """Return the smallest and the largest id, and how many tokens were read for it: all, or parts spread over them."""
    ends = [(int(part.min()), int(part.max()), part.size) for part in _parts(data) if part.size]
    extremes = min((low for low, _, _ in ends), default=0), max((high for _, high, _ in ends), default=0)
    return extremes, sum(size for _, _, size in ends)


def _parts(data: Indexed) -> Iterator[npt.NDArray[np.integer]]:
    """Yield all tokens in parts; of long data, parts spread over it that have `SAMPLED` tokens at most."""
    starts = range(0, len(data.tokens), CHUNK)
    for start in starts[:: max(1, -(-len(starts) * CHUNK // SAMPLED))]:
        yield data.tokens[start : start + CHUNK]


def _endings(data: Indexed, record: Tokenized | None) -> dict[str, Any]:
    """Return which tokens end documents: the token that ends all that were looked at, if one does."""
    ends = data.ends if len(data.ends) else np.arange(1, len(data) + 1)
    chosen = np.unique(np.linspace(0, len(ends) - 1, min(len(ends), ENDINGS)).astype(np.int64))
    last = [int(end) - 1 for end in ends[chosen]]
    found = [_last(data, number) for number in last if number >= 0 and data.lengths[number]]
    distinct = sorted(set(found))
    return {
        "token": distinct[0] if len(distinct) == 1 and len(found) > 1 else None,
        "distinct": len(distinct),
        "looked_at": len(found),
        "recorded": record.append_eod if record else None,
    }


def _last(data: Indexed, number: int) -> int:
    """Return the last token of a sequence; the sequence itself may be long and is not read."""
    width = data.tokens.dtype.itemsize
    at = int(data.starts[number]) + (int(data.lengths[number]) - 1) * width
    return int(data.tokens.read(data.tokens.dtype, 1, at)[0])


def shares_of_roles(prefix: Path, parts: Iterable[npt.NDArray[np.integer]]) -> dict[str, Any]:
    """Return the share of tokens that each role says, in the parts of a PREFIX-role that are given."""
    counts = np.zeros(len(ROLES), np.int64)
    for part in parts:
        if part.size and not 0 <= part.min() <= part.max() < len(ROLES):
            raise FormatError(f"{prefix}: holds numbers that are no role (0 system, 1 prompter, 2 assistant)")
        counts += np.bincount(part.astype(np.int64), minlength=len(ROLES))
    looked_at = int(counts.sum())
    shares = {name: round(count / max(1, looked_at), 4) for name, count in zip(ROLES, counts.tolist(), strict=True)}
    return {**shares, "looked_at": looked_at}


def recorded(record: Tokenized | None) -> dict[str, Any] | None:
    """Return what the record beside the data says of the tokenizer; None without a record of this data."""
    if record is None:
        return None
    names = ("tokenizer", "vocab_size", "append_eod", "prepend_bos", "template", "answer_tokens")
    return {name: getattr(record, name) for name in names if getattr(record, name) is not None}
