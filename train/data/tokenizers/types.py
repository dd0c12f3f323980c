"""The types of tokenizers, under the names that Megatron has for them."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from mconv.errors import ConfigError, FormatError
from mconv.train.data.tokenizers import bpe, huggingface, numbers, pieces
from mconv.train.data.tokenizers.choice import TokenizerChoice, choice_of
from mconv.train.data.tokenizers.loaded import LoadedTokenizer

FLAGS = {
    "path": "--tokenizer", "vocab_file": "--vocab-file", "merge_file": "--merge-file", "vocab_size": "--vocab-size",
    "new_tokens": "--new-tokens", "extra_ids": "--vocab-extra-ids", "extra_tokens": "--vocab-extra-ids-list",
}  # fmt: skip
"""Field of a choice -> its option."""
ADDED = {"extra_ids", "extra_tokens"}


@dataclass(frozen=True, slots=True)
class TokenizerType:
    """A type of tokenizers."""

    load: Callable[..., LoadedTokenizer]
    takes: frozenset[str]
    """Fields of a choice that it uses."""


def _type(load: Callable[..., LoadedTokenizer], *takes: str) -> TokenizerType:
    return TokenizerType(load, frozenset(takes))


FOLDER, PIECES = "HuggingFaceTokenizer", "GPTSentencePieceTokenizer"
TYPES = {
    FOLDER: _type(huggingface.load, "path", *ADDED),
    "FalconTokenizer": _type(huggingface.load, "path", "new_tokens", *ADDED),
    "SentencePieceTokenizer": _type(pieces.megatron, "path", "vocab_file", "new_tokens", *ADDED),
    PIECES: _type(pieces.plain, "path", "vocab_file", *ADDED),
    "Llama2Tokenizer": _type(partial(pieces.plain, begins_with_bos=True), "path", "vocab_file", *ADDED),
    "GPT2BPETokenizer": _type(bpe.load, "path", "vocab_file", "merge_file"),
    "NullTokenizer": _type(numbers.load, "vocab_size"),
}
"""Types by Megatron's names."""
FILES = (
    (("tokenizer.json",), FOLDER),
    (("tokenizer_config.json",), FOLDER),
    (("config.json",), FOLDER),
    (("tokenizer.model",), PIECES),
    (("vocab.json", "merges.txt"), "GPT2BPETokenizer"),
)
"""Files of a folder -> the type that it is, the first row whose files are all there."""


def load(tokenizer: Path | TokenizerChoice) -> LoadedTokenizer:
    """Return the tokenizer of a folder, of a file, or of a choice. Raises MconvError if it cannot be read."""
    choice = choice_of(tokenizer)
    name = choice.type or type_of(choice)
    if name not in TYPES:
        raise ConfigError(f"--tokenizer-type is {name!r}; it must be one of {', '.join(TYPES)}")
    _check(choice, name)
    return TYPES[name].load(choice, type=name)


def type_of(choice: TokenizerChoice) -> str:
    """Return the type of a choice that names none, by its files."""
    if choice.merge_file or (choice.vocab_file and choice.vocab_file.suffix == ".json"):
        return "GPT2BPETokenizer"
    path = choice.path or choice.vocab_file
    if path is None:
        raise ConfigError("no tokenizer is given; name its folder or file with --tokenizer")
    if not path.exists():
        raise FormatError(f"{path}: not a folder with a tokenizer, nor the file of one")
    name = PIECES if path.is_file() else _of_folder(path)
    return "SentencePieceTokenizer" if name == PIECES and choice.new_tokens is not None else name


def _of_folder(folder: Path) -> str:
    return next((name for files, name in FILES if all((folder / file).is_file() for file in files)), FOLDER)


def _check(choice: TokenizerChoice, name: str) -> None:
    """Raise ConfigError on what cannot be: options that the type does not have, tokens that are empty or given twice."""
    unused = [flag for field, flag in FLAGS.items() if getattr(choice, field) and field not in TYPES[name].takes]
    if unused:
        took = ", ".join(FLAGS[field] for field in FLAGS if field in TYPES[name].takes)
        raise ConfigError(f"{', '.join(unused)}: not for a {name}, which takes {took}")
    if choice.extra_ids < 0:
        raise ConfigError(f"--vocab-extra-ids is {choice.extra_ids}; it must be a number of tokens")
    if "" in choice.added or len(set(choice.added)) != len(choice.added):
        raise ConfigError(f"--vocab-extra-ids-list is {','.join(choice.extra_tokens)!r}: a token is empty or there twice")
