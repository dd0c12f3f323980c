"""Compare the records of prefixes that are to be one, and make the record of what they become."""

import dataclasses
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

from mconv.errors import ConfigError, refuse
from mconv.train.data.chat import Role
from mconv.train.data.index import CHUNK, Indexed
from mconv.train.data.mixing.prefixes import Prefix
from mconv.train.data.record import Tokenized

DIFFERENCES: Mapping[str, Mapping[str, str]] = {
    "tokenizer": {
        "tokenizer_files": "the tokenizer", "tokenizer_type": "the tokenizer's type", "added_tokens": "added tokens",
        "vocab_size": "vocabulary size",
    },
    "eod": {"append_eod": "the end-of-document token"},
    "bos": {"prepend_bos": "the BOS token"},
    "template": {"template": "chat template"},
}  # fmt: skip
"""Word of --allow-different -> the fields of a record that may then differ, and what they are called."""
_SUMS = ("documents", "empty", "spelled", "tokens", "answer_tokens", "unended", "excluded", "bin_bytes")
_COUNTS = ("rejected", "ignored", "unread")
_LISTED = 5
"""Rejected records that a joined record quotes."""


def check(found: Sequence[Prefix], allowed: Collection[str] = ()) -> None:
    """Raise ConfigError where records say that prefixes were made in different ways; those without a record pass."""
    recorded = [(one, one.record) for one in found if one.record]
    problems = [
        f"{one.path} and {recorded[0][0].path} differ in {title}: {_shown(record, field)} and "
        f"{_shown(recorded[0][1], field)}; tokenize one of them again, or pass --allow-different {word}"
        for word, fields in DIFFERENCES.items()
        if word not in allowed
        for field, title in fields.items()
        for one, record in recorded[1:]
        if _value(record, field) != _value(recorded[0][1], field)
    ]
    refuse(problems, doing="comparing the records beside the data", kind=ConfigError)


def joined(found: Sequence[Prefix]) -> Tokenized | None:
    """Return the record of prefixes that are joined; None where one has no record, or they were made differently."""
    records = [one.record for one in found if one.record]
    fields = [field for group in DIFFERENCES.values() for field in group]
    alike = all(_value(record, field) == _value(records[0], field) for record in records for field in fields)
    if len(records) < len(found) or not alike:
        return None
    values: dict[str, Any] = {name: _sum([getattr(record, name) for record in records]) for name in _SUMS}
    values |= {name: dict(sum((Counter(getattr(record, name)) for record in records), Counter())) for name in _COUNTS}
    first = [line for record in records for line in record.first_rejected][:_LISTED]
    skipped = any(record.on_bad_record == "skip" for record in records)
    return dataclasses.replace(
        records[0], **values, max_id=max(record.max_id for record in records), first_rejected=first,
        on_bad_record="skip" if skipped else "stop", reject_file=None,
    )  # fmt: skip


def of_head(one: Prefix, documents: int, tokens: int) -> Tokenized | None:
    """Return the record of a prefix's first documents: what the whole one's record says, with their own counts."""
    if one.record is None:
        return None
    return dataclasses.replace(
        one.record, documents=documents, tokens=tokens, max_id=_largest(one.open(), tokens), empty=0, spelled=None,
        bin_bytes=tokens * one.text.dtype.itemsize, answer_tokens=_answers(one, tokens), unended=None,
        excluded=None, rejected={}, first_rejected=[], reject_file=None, ignored={}, unread={},
    )  # fmt: skip


def _largest(data: Indexed, tokens: int) -> int:
    return max(int(data.tokens[start : min(start + CHUNK, tokens)].max()) for start in range(0, tokens, CHUNK))


def _answers(one: Prefix, tokens: int) -> int | None:
    """Return how many of a prefix's first tokens the assistant says; None of running text."""
    if not one.talks:
        return None
    data = one.open(1)
    roles = (data.tokens[start : min(start + CHUNK, tokens)] for start in range(0, tokens, CHUNK))
    return sum(int(np.count_nonzero(part == Role.ASSISTANT)) for part in roles)


def _sum(values: Sequence[int | None]) -> int | None:
    """Return the sum, or None where a part is not known."""
    known = [value for value in values if value is not None]
    return sum(known) if len(known) == len(values) else None


def _value(record: Tokenized, field: str) -> Any:
    """Return what is compared: of the tokenizer, the digests of the files that decide on ids, else the one over all."""
    value = getattr(record, field)
    return (value or record.tokenizer_sha256) if field == "tokenizer_files" else value


def _shown(record: Tokenized, field: str) -> str:
    return record.tokenizer if field == "tokenizer_files" else str(getattr(record, field)).replace("None", "none")
