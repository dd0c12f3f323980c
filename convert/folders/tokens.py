"""Tokenizer files beside a model: which there are, how many ids they know, and whether those fit the embedding.

Only their plain files are read; no tokenizer is built and no code of theirs runs.
"""

import fnmatch
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mconv.convert.folders import pieces
from mconv.convert.formats.jsonfile import read_json
from mconv.errors import FormatError

JSON, MODEL, ADDED, CONFIG = "tokenizer.json", "tokenizer.model", "added_tokens.json", "tokenizer_config.json"
VOCABULARY = (
    JSON, MODEL, "tokenizer.model.v*", "tekken.json", "*.tiktoken", "vocab.*", "*.model", "*.spm", "*.bpe",
    "tokenizer.*.json",
)  # fmt: skip
"""Files any of which makes a tokenizer."""
TOKENIZER = (
    *VOCABULARY, "tokenizer*", "tokenization_*.py", "merges.*", ADDED, "special_tokens*", "chat_template*",
    "additional_chat_templates/*", "chat_templates/*",
)  # fmt: skip
"""Names of the files that make one tokenizer: never mixed from two places."""
DECIDING = (
    JSON,
    MODEL,
    "vocab.*",
    "merges.*",
    ADDED,
    "tokenizer.model.v*",
    "tekken.json",
    "*.tiktoken",
    "*.model",
    "*.spm",
)
"""Files that decide which ids a text gets; the others of a tokenizer hold templates and hints."""
Files = Mapping[str, Path]
"""Name below the model's folder -> the file."""


def is_tokenizer(name: str) -> bool:
    """Return whether a file of a model folder is part of its tokenizer."""
    return _fits(name, TOKENIZER)


def makes_tokenizer(names: Iterable[str]) -> bool:
    """Return whether these files have a tokenizer among them, and not just hints for one."""
    return any(_fits(name, VOCABULARY) for name in names)


def decides(name: str) -> bool:
    """Return whether a file decides which ids a text gets."""
    return _fits(name, DECIDING)


def _fits(name: str, patterns: Iterable[str]) -> bool:
    """Return whether a pattern fits; `*` stays within one folder."""
    return any(name.count("/") == p.count("/") and fnmatch.fnmatchcase(name.lower(), p) for p in patterns)


@dataclass(frozen=True, slots=True)
class Count:
    """The number of ids that a tokenizer knows: one more than its highest."""

    ids: int
    file: Path
    """The file with the highest."""
    bare: bool
    """A SentencePiece model alone, which cannot hold tokens that a program added to it."""


def gather(*places: Files) -> dict[str, Path]:
    """Return files by name, the first place wins; the tokenizer whole from the first place that has one."""
    whole = next((place for place in places if makes_tokenizer(place)), None)
    if whole is None:  # no more than hints
        whole = next((place for place in places if any(map(is_tokenizer, place))), {})
    found = {name: path for name, path in whole.items() if is_tokenizer(name)}
    for place in places:
        found |= {name: path for name, path in place.items() if name not in found and not is_tokenizer(name)}
    return dict(sorted(found.items()))


def count(files: Files) -> Count | None:
    """The ids of the tokenizer in `files`, added tokens among them; None where they tell of none."""
    readers = {JSON: _json, MODEL: _pieces, ADDED: _added, CONFIG: _decoder, "vocab.json": _added}
    counts = [(read(files[name]), files[name]) for name, read in readers.items() if name in files]
    ids, file = max(counts, key=lambda pair: pair[0], default=(0, Path()))
    bare = JSON not in files and MODEL in files and _is_pieces(files[MODEL])
    return Count(ids, file, bare) if ids else None


def too_many(files: Files, *, rows: int) -> list[str]:
    """Return the problem of a tokenizer that knows ids for which the embedding has no row, or None.

    Fewer ids than rows are normal: tables are rounded up, and rows are kept in reserve.
    """
    found = count(files)
    if found is None or found.ids <= rows:
        return []
    return [
        f"{found.file}: the tokenizer knows {found.ids} ids, the model's embedding has {rows} rows: the others "
        "would crash or be taken for another. Give --tokenizer DIR with the tokenizer that the model was trained with, "
        "or --vocab-size if the model's true vocabulary is another"
    ]


def too_few(files: Files, *, rows: int) -> str | None:
    """Return the reason why a SentencePiece model alone is not the tokenizer of a larger embedding, or None."""
    found = count(files)
    if found is None or not found.bare or found.ids >= rows:
        return None
    return (
        f"{found.file} has {found.ids} pieces, the model's embedding {rows} rows: the {rows - found.ids} tokens between, "
        "which the training program added, are not in any file"
    )


def special_ids(files: Files) -> dict[str, int]:
    """`bos_token_id` and `eos_token_id`, where the tokenizer's files name those tokens."""
    if CONFIG in files and JSON in files:
        config, known = read_json(files[CONFIG]), _known(files[JSON])
        named = {key: config.get(key) for key in ("bos_token", "eos_token")}
        words = {key: value.get("content") if isinstance(value, dict) else value for key, value in named.items()}
        return {f"{key}_id": known[word] for key, word in words.items() if isinstance(word, str) and word in known}
    if MODEL in files and _is_pieces(files[MODEL]):
        found = pieces.read(files[MODEL])
        ids = {"bos_token_id": found.bos, "eos_token_id": found.eos}
        return {key: value for key, value in ids.items() if value is not None}
    return {}


# ---- one file each ---------------------------------------------------------------------------------------------------
def _top(path: Path, ids: Iterable[Any]) -> int:
    ids = list(ids)
    if not all(type(n) is int and n >= 0 for n in ids):
        raise FormatError(f"{path}: not the file of a tokenizer: its ids are not all whole numbers")
    return max(ids, default=-1) + 1


def _known(path: Path) -> dict[str, Any]:
    """Token -> id, as `tokenizer.json` has them."""
    values = read_json(path)
    model, added = values.get("model"), values.get("added_tokens") or []
    vocab = model.get("vocab") if isinstance(model, dict) else None
    if isinstance(vocab, list):
        vocab = {str(entry[0]) if isinstance(entry, list) and entry else n: n for n, entry in enumerate(vocab)}
    if not isinstance(vocab, dict) or not isinstance(added, list) or not all(isinstance(t, dict) for t in added):
        raise FormatError(f"{path}: not a tokenizer of the tokenizers library: it has no model.vocab")
    return vocab | {str(token.get("content")): token.get("id") for token in added}


def _json(path: Path) -> int:
    return _top(path, _known(path).values())


def _added(path: Path) -> int:
    return _top(path, read_json(path).values())


def _decoder(path: Path) -> int:
    decoder = read_json(path).get("added_tokens_decoder") or {}
    if not isinstance(decoder, dict) or not all(key.isdigit() for key in decoder):
        raise FormatError(f"{path}: added_tokens_decoder does not map ids to tokens")
    return _top(path, map(int, decoder))


def _is_pieces(path: Path) -> bool:
    """Return whether a `tokenizer.model` is SentencePiece's; Llama 3's is a list of base64 tokens and ranks."""
    with path.open("rb") as file:
        return re.match(rb"[A-Za-z0-9+/]+=* \d+\r?\n", file.read(256)) is None


def _pieces(path: Path) -> int:
    if _is_pieces(path):
        return pieces.read(path).count
    with path.open("rb") as file:
        return sum(1 for line in file if line.strip())
