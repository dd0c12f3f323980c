"""Check before the first step that the data is complete, long enough and fits the model; report all problems at once."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from mconv.errors import ConfigError, FormatError, MconvError, refuse
from mconv.train.data.index import Indexed, open_index
from mconv.train.data.instruction import Conversations, open_conversations
from mconv.train.data.record import Tokenized, file_digest, read_record
from mconv.train.data.sources import ROLE, TEXT

Data = TypeVar("Data", Indexed, Conversations)
LOOKED_AT = 1000
"""Documents whose last token is looked at."""
SCANNED = 1 << 28
"""Ids that are looked at, spread over the files, where no record says how large they are: each rank reads them. All of
them are looked at once more when they are drawn."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PrefixShare:
    """One use of some prefixes: the share of each between two edges, for training or validation."""

    name: str
    prefixes: Sequence[Path]
    edges: tuple[float, float] = (0.0, 1.0)


def check(used: Sequence[PrefixShare], *, vocab_size: int, seq_length: int) -> None:
    """Refuse data that is missing, damaged, too short for one sample, or holds ids that the model does not have.

    Each part of each prefix must have a sample: megatron-core counts for ever in an empty one.
    """
    prefixes = list(dict.fromkeys(prefix for part in used for prefix in part.prefixes))
    opened = _opened(prefixes, open_index, lambda data: _text(data, vocab_size, most=SCANNED // len(prefixes)))
    each(
        [(part, opened[prefix]) for part in used for prefix in part.prefixes],
        lambda one: _long_enough(one[1], one[0], seq_length),
    )


def conversations(prefixes: Sequence[Path], *, vocab_size: int) -> dict[Path, Conversations]:
    """Open instruction data; refuse what is missing, damaged, does not match, or holds ids that the model has not."""
    most = SCANNED // len(prefixes)
    return _opened(prefixes, open_conversations, lambda data: unknown_ids(data.text, vocab_size, most=most))


def _opened(
    prefixes: Sequence[Path], how: Callable[[Path], Data], problems: Callable[[Data], Iterator[str]]
) -> dict[Path, Data]:
    """Open each prefix once, its files checked whole. Raises all problems together, as `each`."""
    found: dict[Path, Data] = {}

    def open_one(prefix: Path) -> Iterator[str]:
        found[prefix] = how(prefix)
        yield from problems(found[prefix])

    each(prefixes, open_one)
    return found


def each(things: Sequence[Any], problems: Callable[[Any], Iterator[str]]) -> None:
    """Raise all problems of all things together: FormatError if a damaged file is among them, else ConfigError."""
    kind: type[MconvError] = ConfigError
    found: list[str] = []
    for thing in things:
        try:
            found += problems(thing)
        except FormatError as error:
            kind = FormatError
            found.append(str(error))
    refuse(found, doing="opening the data", kind=kind)


def _text(data: Indexed, vocab_size: int, *, most: int) -> Iterator[str]:
    """Yield the problems of a prefix as plain text."""
    prefix = data.prefix
    twin = prefix.with_name(prefix.name.removesuffix(ROLE) + TEXT + ".bin")
    if prefix.name.endswith(ROLE) and twin.is_file():
        yield f"{prefix} holds the roles of instruction data, not text; set data_type: instruction and leave {ROLE} out"
    if not len(data.ends):
        yield f"{prefix} marks no documents, and megatron-core refuses it as running text; tokenize it again"
    yield from unknown_ids(data, vocab_size, most=most)


def unknown_ids(data: Indexed, vocab_size: int, *, most: int) -> Iterator[str]:
    """Yield a problem if there is an id that the model has no row for, `most` of them looked at."""
    record = read_record(data.prefix)
    lowest, highest = (0, record.max_id) if record else data.extremes(most=most)
    if highest >= vocab_size:
        yield (
            f"{data.prefix} holds token id {highest}, but the model's vocabulary ends at {vocab_size - 1}; "
            "tokenize with the model's own tokenizer"
        )
    if lowest < 0:
        yield f"{data.prefix} holds token id {lowest}; ids begin at 0, so it is damaged or no text"


def _long_enough(data: Indexed, part: PrefixShare, seq_length: int) -> Iterator[str]:
    """Yield a problem if a share of a prefix is shorter than one sample. megatron-core splits at rounded sequences."""
    first, last = (round(len(data) * edge) for edge in part.edges)
    held = int(data.lengths[first:last].sum())
    if held < seq_length + 1:
        whole = part.edges == (0.0, 1.0)
        of = f"{held} tokens" if whole else f"{held} tokens of whole documents for {part.name}, after the split"
        yield f"{data.prefix} holds {of}; one sample of seq_length {seq_length} needs {seq_length + 1}"


def end_of_document(prefixes: Sequence[Path], *, given: int | None, wanted_by: str) -> int:
    """Return the token that ends each document, by the records beside the data, or `given` where there are none.

    `wanted_by` names the option that needs it. Raises ConfigError if documents have no such end, or not all the same.
    """
    records = {prefix: read_record(prefix) for prefix in prefixes}
    bad = [problem for prefix, record in records.items() for problem in _ends(prefix, record, given, wanted_by)]
    ends = {given} if given is not None else {record.append_eod for record in records.values() if record}
    if not bad and len(ends) > 1:
        bad = [f"documents end in one token in some prefixes and in another in others ({ends}); tokenize all alike"]
    refuse(bad, doing="looking for the ends of documents", kind=ConfigError)
    return int(ends.pop() or 0)


def _ends(prefix: Path, record: Tokenized | None, given: int | None, wanted_by: str) -> Iterator[str]:
    if record and record.append_eod is None:
        yield (
            f"{prefix} was tokenized without a token at the end of documents, which {wanted_by} needs; "
            "tokenize again with --append-eod"
        )
    elif record and given not in (None, record.append_eod):
        yield f"{prefix}: its documents end in token {record.append_eod}, but eod_token is {given}"
    elif not record and given is None:
        yield (
            f"{prefix} has no record of how it was tokenized, and {wanted_by} needs the token that ends documents; "
            "give it as eod_token"
        )
    else:
        yield from _other_ends(open_index(prefix), record.append_eod if record else given)


def _other_ends(data: Indexed, wanted: int | None) -> Iterator[str]:
    """Yield a problem if one of the first documents does not end in `wanted`."""
    ends = data.ends if len(data.ends) else range(1, len(data) + 1)
    for number, end in enumerate(map(int, ends[:LOOKED_AT])):
        if end and data.lengths[end - 1] and (last := data[end - 1][-1]) != wanted:
            yield f"{data.prefix}: document {number} ends in token {last}, not in token {wanted}"
            return


def same_tokenizer(prefixes: Sequence[Path], files: Mapping[str, Path]) -> None:
    """Refuse data whose tokenizer has a file that differs from the checkpoint's `files` of that name."""
    each(prefixes, lambda prefix: _other_files(prefix, files))


def _other_files(prefix: Path, own: Mapping[str, Path]) -> Iterator[str]:
    record = read_record(prefix)
    for name, digest in (record.tokenizer_files if record else {}).items():
        if name in own and file_digest(own[name]) != digest:
            yield (
                f"{prefix} was tokenized by another tokenizer than the checkpoint's: {name} differs; tokenize with "
                f"{own[name].parent}, or set allow_other_tokenizer if the two give the same ids"
            )
