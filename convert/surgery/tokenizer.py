"""What a vocabulary is resized by: each token's id, tokens added to a tokenizer's files, ids in configs."""

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mconv.convert.folders import pieces, tokens
from mconv.convert.formats.jsonfile import read_json
from mconv.errors import FormatError, MconvError

VOCAB = "vocab.json"
CONFIGS = ("config.json", "generation_config.json")
ROLE = "_token_id"
"""How the keys of a config end that name a token: eos_token_id."""
MOST = 1 << 24
"""Rows of the largest vocabulary that can be made; the largest known have 300 thousand."""
Values = dict[str, Any]


def ids_of(files: tokens.Files, *, of: object) -> dict[str, int]:
    """Return token -> id of a tokenizer, added tokens too. Raises FormatError, with `of`, if no file lists them."""
    if tokens.JSON in files:
        found = tokens.by_token(files[tokens.JSON])
    elif tokens.MODEL in files and tokens.is_pieces(files[tokens.MODEL]):
        names = pieces.read(files[tokens.MODEL]).names
        found = {name.decode(errors="replace"): i for i, name in enumerate(names)}
    elif VOCAB in files:
        found = read_json(files[VOCAB])
    else:
        raise FormatError(
            f"{of}: no tokenizer.json, SentencePiece tokenizer.model or vocab.json that lists its tokens; put its "
            "tokenizer there"
        )
    added = read_json(files[tokens.ADDED]) if tokens.ADDED in files else {}
    found = {**found, **added, **{entry["content"]: int(i) for i, entry in _decoder(files).items()}}
    if not all(type(id) is int and 0 <= id < MOST for id in found.values()):
        raise FormatError(f"{of}: not the files of a tokenizer: its ids are not all whole numbers below {MOST}")
    return found


def _decoder(files: tokens.Files) -> Values:
    """Return the added tokens of `tokenizer_config.json` by id."""
    config = read_json(files[tokens.CONFIG]) if tokens.CONFIG in files else {}
    found = config.get("added_tokens_decoder") or {}
    if not isinstance(found, dict) or not all(
        key.isdecimal() and isinstance(entry, dict) and isinstance(entry.get("content"), str)
        for key, entry in found.items()
    ):
        raise FormatError(f"{files[tokens.CONFIG]}: added_tokens_decoder does not map ids to tokens")
    return found


def added(
    files: tokens.Files, new: Mapping[str, int], *, of: object, flags: Mapping[str, Values] | None = None
) -> dict[str, Values]:
    """Return the files of a tokenizer that change when tokens are added to it, by name.

    `flags`: how each is added (`special`, `lstrip`, ...); one that is not there is a special token.
    """
    entries = {id: _entry(token) | (flags or {}).get(token, {}) for token, id in new.items()}
    made: dict[str, Values] = {}
    if tokens.JSON in files:
        whole = read_json(files[tokens.JSON])
        before = {entry["id"]: entry for entry in whole.get("added_tokens") or []}
        listed = [*(before | {id: {"id": id, **entry} for id, entry in entries.items()}).values()]
        made[tokens.JSON] = {**whole, "added_tokens": listed}
    elif VOCAB in files or (tokens.MODEL in files and tokens.is_pieces(files[tokens.MODEL])):
        known = read_json(files[tokens.ADDED]) if tokens.ADDED in files else {}
        made[tokens.ADDED] = {**known, **new}
    else:
        raise MconvError(
            f"{of}: mconv cannot add tokens to a tokenizer of this kind; add them with the program that it is of, and "
            "give --tokenizer the folder that this saves"
        )
    config = read_json(files[tokens.CONFIG]) if tokens.CONFIG in files else {}
    if "added_tokens_decoder" in config or tokens.JSON not in files:
        decoder = {**_decoder(files), **{str(id): entry for id, entry in entries.items()}}
        made[tokens.CONFIG] = {**config, "added_tokens_decoder": decoder}
    return made


PLAIN: Values = {"special": False, "normalized": True}
"""How a token is added that is no special one."""
FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")


def flags_of(files: tokens.Files) -> dict[str, Values]:
    """Return how the added tokens of a tokenizer are added, in the order of their ids."""
    listed = read_json(files[tokens.JSON]).get("added_tokens") or [] if tokens.JSON in files else []
    found = {int(entry["id"]): entry for entry in listed} | {int(id): entry for id, entry in _decoder(files).items()}
    return {found[id]["content"]: {flag: bool(found[id].get(flag)) for flag in FLAGS} for id in sorted(found)}


def _entry(token: str) -> Values:
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"content": token, **flags, "special": True}


def token_ids(config: Mapping[str, Any]) -> dict[str, list[int]]:
    """Return the keys of a config that name tokens, and the ids that each has."""
    found = {key: value if isinstance(value, list) else [value] for key, value in config.items() if key.endswith(ROLE)}
    return {key: ids for key, ids in found.items() if ids and all(type(id) is int for id in ids)}


def moved(config: Mapping[str, Any], old: Mapping[str, int], new: Mapping[str, int], files: tokens.Files) -> Values:
    """Return a config whose token ids are those of another tokenizer: what that names itself first, then by string.

    An id whose token the other tokenizer does not have is left out.
    """
    named, by_id = _named(files, new), {id: token for token, id in old.items()}
    out = dict(config)
    for key, ids in token_ids(config).items():
        own = [named[key]] if key in named else []
        found = [*dict.fromkeys([*own, *(new[by_id[id]] for id in ids if by_id.get(id) in new)])]
        out[key] = found if found and isinstance(config[key], list) else found[0] if found else None
    return {key: value for key, value in out.items() if value is not None or config[key] is None}


def _named(files: tokens.Files, new: Mapping[str, int]) -> dict[str, int]:
    """Return the ids of the tokens that `tokenizer_config.json` names for a purpose: eos_token is eos_token_id."""
    config = read_json(files[tokens.CONFIG]) if tokens.CONFIG in files else {}
    words = {key: value.get("content") if isinstance(value, dict) else value for key, value in config.items()}
    return {
        f"{key}_id": new[word]
        for key, word in words.items()
        if key.endswith("_token") and isinstance(word, str) and word in new
    }


def write(values: Mapping[str, Values], folder: Path) -> dict[str, Path]:
    """Write JSON files into a folder, with a time that is always the same: an interrupted run knows them again."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, value in values.items():
        (folder / name).write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        os.utime(folder / name, ns=(0, 0))
    return {name: folder / name for name in values}


def subwords(
    wanted: Mapping[int, str], *, old: tokens.Files, new: tokens.Files | None, of: object
) -> dict[int, Sequence[int]]:
    """Return, for each id and token of `wanted`, the ids that the old tokenizer splits its text into; none if it cannot.

    `new` is the tokenizer that the tokens are of, None where a token is its own text.
    """
    from mconv import extras

    extras.need("hf", "tokenizers", to="--init subword-mean")
    if tokens.JSON not in old:
        raise MconvError(
            f"{of}: --init subword-mean needs the model's own tokenizer.json, to split the new tokens with it"
        )
    from tokenizers import Tokenizer

    splitter = Tokenizer.from_file(str(old[tokens.JSON]))
    reader = Tokenizer.from_file(str(new[tokens.JSON])) if new and tokens.JSON in new else None
    unknown = getattr(splitter.model, "unk_token", None)
    bad = {splitter.token_to_id(unknown)} if unknown else set()
    out: dict[int, Sequence[int]] = {}
    for id, token in wanted.items():
        text = _text(reader, id, token) if new is not None else token
        tried = [splitter.encode(one, add_special_tokens=False).ids for one in {text, text.removeprefix(" ")} if one]
        out[id] = min((ids for ids in tried if ids and not bad & {*ids}), key=lambda ids: (len(ids), ids), default=[])
    return out


def _text(reader: Any, id: int, token: str) -> str:
    """Return the text that a token stands for, with the space that it begins with."""
    space = " " if token[:1] in ("▁", "Ġ") else ""
    text = token.replace("▁", " ") if reader is None else reader.decode([id], skip_special_tokens=False)
    return text if text.startswith(" ") else space + text


def listed(text: str | None) -> tuple[str, ...]:
    """Return the tokens of a list such as "[formula],[/formula]". Raises MconvError if one is empty or there twice."""
    found = tuple(text.split(",")) if text is not None else ()
    if any(not token.strip() for token in found) or len({*found}) < len(found):
        raise MconvError(f"--tokens {str(text)[:80]!r}: tokens are separated by commas, none is empty or there twice")
    return found


def highest(ids: Iterable[int]) -> int:
    """Return one more than the highest id."""
    return max(ids, default=-1) + 1
