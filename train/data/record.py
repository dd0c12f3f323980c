"""The record beside token data of how it was made, and the tokenizer that the record names."""

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mconv.convert.folders.tokens import decides
from mconv.errors import FormatError
from mconv.train.data.index import with_ending
from mconv.train.data.tokenizers.loaded import LoadedTokenizer

DTYPE_RULES = {"megatron": 65500, "datatrove": 65537}
"""Values of --dtype-rule, with the vocabulary from which on ids take 4 bytes: IndexedDataset.optimal_dtype of
megatron-core and Megatron-LLM; token_size of datatrove."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tokenized:
    """The record `PREFIX.mconv.json`: enough to know at training whether model and data belong together."""

    tokenizer: str
    """Folder or file that the tokenizer was read from."""
    tokenizer_type: str = "HuggingFaceTokenizer"
    """Megatron's name of its type."""
    added_tokens: list[str] = field(default_factory=list)
    """Tokens behind those of its files, in the order of their ids."""
    tokenizer_sha256: str
    """Digest over the tokenizer's files, its chat template among them."""
    tokenizer_files: dict[str, str] = field(default_factory=dict)
    """Digest of each file that decides on ids, to compare with those of the checkpoint that is trained."""
    vocab_size: int
    append_eod: int | None
    """Token that ends each document; None if none was appended."""
    prepend_bos: int | None
    documents: int
    empty: int
    """Documents without text, left out."""
    spelled: int | None = None
    """Documents whose text spells the token that ends them: they are taken for several there."""
    tokens: int
    max_id: int
    dtype: str
    bin_bytes: int
    """Size of the .bin file: a record of another size belongs to other data."""
    template: str | None = None
    """Chat template of instruction data, by name, or the tokenizer's own."""
    answer_tokens: int | None = None
    """Tokens that the assistant says, in instruction data."""
    unended: int | None = None
    """Conversations in which no special token ends the last answer, in instruction data."""
    excluded: int | None = None
    """Answers that a switch of their turn or record excludes from the loss, in instruction data."""
    on_bad_record: str = "stop"
    """The policy for bad records: `stop` or `skip`."""
    rejected: dict[str, int] = field(default_factory=dict)
    """Bad records that were left out, by kind."""
    first_rejected: list[str] = field(default_factory=list)
    reject_file: str | None = None
    """Name of the file beside this record that lists all bad records; None without any."""
    ignored: dict[str, int] = field(default_factory=dict)
    """Fields of instruction data that --ignore-field passed over, and how often."""
    unread: dict[str, int] = field(default_factory=dict)
    """Fields of instruction data that are known to say nothing of the conversation, and how often each was there."""


def read_record(prefix: Path) -> Tokenized | None:
    """Return the record beside PREFIX.bin, or None if there is none or it belongs to other data."""
    path = with_ending(prefix, ".mconv.json")
    if not path.is_file():
        return None
    known = {field.name for field in dataclasses.fields(Tokenized)}
    try:
        record = Tokenized(**{name: value for name, value in json.loads(path.read_text()).items() if name in known})
        if not isinstance(record.max_id, int) or not isinstance(record.append_eod, int | None):
            raise TypeError("ids are whole numbers")
        record.tokenizer_files.items()
    except (ValueError, TypeError, AttributeError) as error:
        raise FormatError(f"{path} is damaged ({error}); remove it, or tokenize again") from error
    return record if record.bin_bytes == with_ending(prefix, ".bin").stat().st_size else None


def facts(
    tokenizer: LoadedTokenizer, *, append_eod: bool, prepend_bos: bool, dtype_rule: str = "megatron"
) -> dict[str, Any]:
    """Return all that the record keeps of the tokenizer. Raises ConfigError if it lacks a token that is asked for."""
    return {
        "tokenizer": tokenizer.place,
        "tokenizer_type": tokenizer.type,
        "added_tokens": [*tokenizer.added],
        "tokenizer_sha256": _digest(tokenizer.files),
        "tokenizer_files": {name: file_digest(path) for name, path in tokenizer.files.items() if decides(name)},
        "vocab_size": tokenizer.size,
        **tokenizer.marks(append_eod=append_eod, prepend_bos=prepend_bos),
        "dtype": "uint16" if tokenizer.size < DTYPE_RULES[dtype_rule] else "int32",
    }


def _digest(files: Mapping[str, Path]) -> str:
    digest = hashlib.sha256()
    for name, path in sorted(files.items()):
        digest.update(name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


def file_digest(path: Path) -> str:
    """Return the sha256 of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()
