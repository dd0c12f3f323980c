"""Tokenizer files beside a model: which there are, how many ids they know, and whether those fit the embedding.

Only their plain files are read; no tokenizer is built and no code of theirs runs.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mconv.convert.formats.hf import read_json
from mconv.errors import FormatError

JSON, MODEL, ADDED, CONFIG = "tokenizer.json", "tokenizer.model", "added_tokens.json", "tokenizer_config.json"
FILES = (
    JSON, MODEL, CONFIG, ADDED, "special_tokens_map.json", "vocab.json", "merges.txt", "chat_template.jinja",
    "chat_template.json",
)  # fmt: skip
"""All that is one tokenizer: never mixed from two places."""


@dataclass(frozen=True, slots=True)
class Count:
    """How many ids a tokenizer knows: one more than its highest."""

    ids: int
    file: Path
    """The file with the highest."""
    bare: bool
    """A SentencePiece model alone, which cannot hold tokens that a program added to it."""


def gather(*places: Iterable[Path]) -> list[Path]:
    """Files by name, the first place wins; the tokenizer whole from the first place that has any of it."""
    found: dict[str, Path] = {}
    for place in places:
        files = {path.name: path for path in place}
        if found.keys() & set(FILES):
            files = {name: path for name, path in files.items() if name not in FILES}
        found = files | found
    return list(found.values())


def count(files: Iterable[Path]) -> Count | None:
    """The ids of the tokenizer in `files`, added tokens among them; None where they tell of none."""
    by_name = {path.name: path for path in files}
    readers = {JSON: _json, MODEL: _pieces, ADDED: _added, CONFIG: _decoder, "vocab.json": _added}
    counts = [(read(by_name[name]), by_name[name]) for name, read in readers.items() if name in by_name]
    ids, file = max(counts, key=lambda pair: pair[0], default=(0, Path()))
    bare = JSON not in by_name and MODEL in by_name and _is_pieces(by_name[MODEL])
    return Count(ids, file, bare) if ids else None


def too_many(files: Iterable[Path], *, rows: int) -> list[str]:
    """What is wrong with a tokenizer that knows ids which the embedding has no row for.

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


def too_few(files: Iterable[Path], *, rows: int) -> str | None:
    """Why a SentencePiece model alone is not the tokenizer of a larger embedding."""
    found = count(files)
    if found is None or not found.bare or found.ids >= rows:
        return None
    return (
        f"{found.file} has {found.ids} pieces, the model's embedding {rows} rows: the {rows - found.ids} tokens between, "
        "which the training program added, are in no file"
    )


def special_ids(files: Iterable[Path]) -> dict[str, int]:
    """`bos_token_id` and `eos_token_id`, where the tokenizer's files name those tokens."""
    by_name = {path.name: path for path in files}
    if CONFIG in by_name and JSON in by_name:
        config, known = read_json(by_name[CONFIG]), _known(by_name[JSON])
        named = {key: config.get(key) for key in ("bos_token", "eos_token")}
        words = {key: value.get("content") if isinstance(value, dict) else value for key, value in named.items()}
        return {f"{key}_id": known[word] for key, word in words.items() if isinstance(word, str) and word in known}
    if MODEL in by_name and _is_pieces(by_name[MODEL]):
        pieces = _sentencepiece(by_name[MODEL])
        ids = {"bos_token_id": pieces.bos_id(), "eos_token_id": pieces.eos_id()}
        return {key: value for key, value in ids.items() if value >= 0}
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
    """Whether a `tokenizer.model` is SentencePiece's; Llama 3's is a list of base64 tokens and ranks."""
    with path.open("rb") as file:
        return re.match(rb"[A-Za-z0-9+/]+=* \d+\r?\n", file.read(256)) is None


def _pieces(path: Path) -> int:
    if _is_pieces(path):
        return int(_sentencepiece(path).get_piece_size())
    with path.open("rb") as file:
        return sum(1 for line in file if line.strip())


def _sentencepiece(path: Path) -> Any:
    from sentencepiece import SentencePieceProcessor

    try:
        return SentencePieceProcessor(model_file=str(path))
    except (RuntimeError, OSError) as error:
        raise FormatError(f"{path}: neither a SentencePiece model nor Llama 3's list of tokens") from error
