"""A tokenizer that transformers reads from a folder: offline, and without code of the folder's."""

import functools
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mconv import extras
from mconv.convert.folders.tokens import JSON, count, decides
from mconv.errors import ConfigError, FormatError
from mconv.train.data.tokenizers import kept
from mconv.train.data.tokenizers.choice import TokenizerChoice
from mconv.train.data.tokenizers.encoders import Encode, Locate, Located, RustEncoder
from mconv.train.data.tokenizers.kept import Kept
from mconv.train.data.tokenizers.loaded import LoadedTokenizer

OWN = ("tokenizer", "special_tokens", "added_tokens", "chat_template")
"""Beginnings of the names of a tokenizer's files, beside those that decide on ids."""


def load(choice: TokenizerChoice, *, type: str) -> LoadedTokenizer:
    """Return the tokenizer of a Hugging Face folder, with the tokens that the user adds as special ones."""
    folder = choice.path
    if folder is None:
        raise ConfigError(f"--tokenizer-type {type} needs --tokenizer-model: the folder of the tokenizer")
    read.cache_clear()  # the folder may have been written anew since
    place = kept.place(folder, choice.added)
    found = kept.find(place) or _found(folder, choice.added, place)
    files = {path.name: path for path in sorted(folder.iterdir()) if path.is_file() and _is_own(path.name)}
    rust = RustEncoder(found.json, found.special_as_text)
    return LoadedTokenizer(
        type=type, place=str(folder), files=files, size=found.size, bos=found.bos, eos=found.eos, added=choice.added,
        special=frozenset(found.special), folder=folder,
        encoder=rust if found.json else TransformersEncoder(folder, choice.added),
    )  # fmt: skip


def _found(folder: Path, added: tuple[str, ...], place: Path | None) -> Kept:
    """Return what transformers makes of a folder, and keep it for the next time."""
    tokenizer = read(folder, added)
    marked = {number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
    found = Kept(
        size=len(tokenizer), bos=tokenizer.bos_token_id, eos=tokenizer.eos_token_id,
        special=sorted({*tokenizer.all_special_ids, *marked}), json=_json(tokenizer),
        special_as_text=bool(tokenizer.split_special_tokens),
    )  # fmt: skip
    kept.keep(place, found)
    return found


def _is_own(name: str) -> bool:
    return name.startswith(OWN) or decides(name)


@functools.lru_cache(maxsize=1)
def read(folder: Path, added: tuple[str, ...] = ()) -> Any:
    """Return transformers' tokenizer of a folder, once in a process. Raises FormatError if there is none."""
    if not folder.is_dir():
        raise FormatError(f"{folder}: not a folder with a tokenizer")
    extras.need("data", "transformers", to="a tokenizer")
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise FormatError(f"{folder}: transformers cannot read a tokenizer from it: {error}") from error
    _check_whole(tokenizer, folder)
    if added:
        tokenizer.add_special_tokens({"additional_special_tokens": [*added]}, replace_extra_special_tokens=False)
    return tokenizer


def _check_whole(tokenizer: Any, folder: Path) -> None:
    """Raise FormatError if transformers lost ids: for some files it makes a vocabulary of one token, silently."""
    files = {path.name: path for path in folder.iterdir() if path.is_file()}
    found = count(files) if JSON not in files else None
    top = max(tokenizer.get_vocab().values(), default=-1) + 1
    if found and top < found.ids:
        raise FormatError(
            f"{folder}: transformers reads {top} of the {found.ids} ids of {found.file.name}; its other files do not fit"
        )


@dataclass(frozen=True, slots=True)
class TransformersEncoder:
    """A tokenizer that only transformers can call: one in Python, or of a class with a call of its own."""

    folder: Path
    added: tuple[str, ...] = ()

    def open(self) -> Encode:
        """Return the function that tokenizes."""
        tokenizer = read(self.folder, self.added)

        def encode(texts: list[str]) -> Iterable[list[int]]:
            coded: Iterable[list[int]] = tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]
            return coded

        return encode

    def locate(self) -> Locate:
        """Return the function that tokenizes, and tells where in its text each token begins."""
        tokenizer = read(self.folder, self.added)
        if not tokenizer.is_fast:
            raise ConfigError(
                f"{self.folder}: not a fast tokenizer; only fast ones say from which characters a token comes"
            )

        def encode(texts: list[str]) -> Iterable[Located]:
            coded = tokenizer(texts, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
            for ids, offsets in zip(coded["input_ids"], coded["offset_mapping"], strict=True):
                yield ids, [start for start, _ in offsets]

        return encode


def _json(tokenizer: Any) -> str:
    """Return a tokenizer as the package tokenizers reads it; "" where transformers' call does more than pass texts on."""
    if not tokenizer.is_fast:
        return ""
    from transformers import PreTrainedTokenizerFast

    own, plain = type(tokenizer), PreTrainedTokenizerFast
    if any(getattr(own, name) is not getattr(plain, name) for name in ("__call__", "_encode_plus")):
        return ""
    text: str = tokenizer.backend_tokenizer.to_str()
    return text
