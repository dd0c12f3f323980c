"""A SentencePiece model alone: its own ids, and the tokens that Megatron adds to it."""

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from mconv import extras
from mconv.convert.folders.tokens import MODEL, is_pieces
from mconv.errors import ConfigError, FormatError
from mconv.train.data.tokenizers.choice import TokenizerChoice
from mconv.train.data.tokenizers.encoders import Encode, Locate, Located
from mconv.train.data.tokenizers.loaded import LoadedTokenizer
from mconv.train.data.tokenizers.loaded import special as special_ids

EOD = "<EOD>"
NEW = ("<CLS>", "<SEP>", EOD, "<MASK>")
"""Tokens that Megatron adds to a SentencePiece model, in the order of their ids; one that pads comes behind them."""


def plain(choice: TokenizerChoice, *, type: str, begins_with_bos: bool = False) -> LoadedTokenizer:
    """Return a SentencePiece model as it is: text that spells a special token is text, but for what the user adds."""
    return _load(choice, type, lambda processor: (), new=False, begins_with_bos=begins_with_bos)


def megatron(choice: TokenizerChoice, *, type: str) -> LoadedTokenizer:
    """Return Megatron's SentencePieceTokenizer: special tokens in the text are themselves, five new ones among them."""
    return _load(choice, type, _named, new=choice.new_tokens is not False)


def _load(
    choice: TokenizerChoice, type: str, named: Callable[[Any], Iterable[str]], *, new: bool, begins_with_bos: bool = False
) -> LoadedTokenizer:
    """Return the tokenizer of a SentencePiece model in which the tokens `named` are found, or added if `new`."""
    path = model_file(choice)
    model = path.read_bytes()
    processor = _opened(model, str(path))
    size = processor.get_piece_size()
    special = _special(processor, named(processor), choice.added, new=new)
    bos, eos = (number if number >= 0 else None for number in (processor.bos_id(), processor.eos_id()))
    return LoadedTokenizer(
        type=type, place=str(path), files={MODEL: path}, size=max([size - 1, *special.values()]) + 1, bos=bos,
        eos=special.get(EOD, eos), added=tuple(token for token, number in special.items() if number >= size),
        begins_with_bos=begins_with_bos, special=special_ids(*special.values(), bos, eos),
        encoder=PiecesEncoder(model=model, place=str(path), special=special),
    )  # fmt: skip


def model_file(choice: TokenizerChoice) -> Path:
    """Return the SentencePiece model that was chosen. Raises MconvError if there is none, or not one."""
    given = {path for path in (choice.path, choice.vocab_file) if path}
    if len(given) != 1:
        raise ConfigError("a SentencePiece tokenizer is one file: give its tokenizer.model with --tokenizer-model")
    path = given.pop()
    path = path / MODEL if path.is_dir() else path
    if not path.is_file():
        raise FormatError(f"{path}: no such file; give a SentencePiece model (tokenizer.model)")
    if not is_pieces(path):
        raise FormatError(f"{path}: Llama 3's list of tokens, not a SentencePiece model; give a Hugging Face folder")
    return path


def _opened(model: bytes, place: str) -> Any:
    """Return the library's processor of a model. Raises FormatError if it is none."""
    extras.need("data", "sentencepiece", to=f"reading {place}")
    from sentencepiece import SentencePieceProcessor

    try:
        return SentencePieceProcessor(model_proto=model)
    except RuntimeError as error:
        raise FormatError(f"{place}: not a SentencePiece model ({error})") from error


def _named(processor: Any) -> Iterator[str]:
    """Yield the tokens that Megatron looks for: the new ones, and those that pad, begin and end a text in the model."""
    yield from NEW
    for number, name in (
        (processor.pad_id(), "<PAD>"), (processor.bos_id(), "<BOS>"), (processor.eos_id(), "<EOS>")
    ):  # fmt: skip
        yield processor.id_to_piece(number) if number >= 0 else name


def _special(processor: Any, named: Iterable[str], extra: Iterable[str], *, new: bool) -> dict[str, int]:
    """Return the ids of special tokens: the model's, and behind its last piece new ones in their order."""
    top = processor.get_piece_size()
    special: dict[str, int] = {}
    for token, add in [*((token, new) for token in named), *((token, True) for token in extra)]:
        number = processor.piece_to_id(token)
        if processor.id_to_piece(number) == token:
            special[token] = number
        elif add and token not in special:
            special[token] = top
            top += 1
    return special


@dataclass(frozen=True, slots=True, kw_only=True)
class PiecesEncoder:
    """A SentencePiece model, and tokens that are looked for in the text before it gets the rest."""

    model: bytes = field(repr=False)
    place: str
    special: dict[str, int]

    def open(self) -> Encode:
        """Return the function that tokenizes. What lies between special tokens is tokenized as a text of its own."""
        processor, cut = _opened(self.model, self.place), self._cutter()

        def encode(texts: list[str]) -> Iterator[list[int]]:
            cuts = [cut(text) for text in texts]
            between = [part for parts in cuts for part in parts[::2]]
            coded = iter(processor.encode(between, num_threads=1) if between else [])
            for parts in cuts:
                ids: list[int] = next(coded)
                for token in parts[1::2]:
                    ids.append(self.special[token])
                    ids += next(coded)
                yield ids

        return encode

    def locate(self) -> Locate:
        """Return the function that tokenizes, and tells where in the text each token begins."""
        processor, cut = _opened(self.model, self.place), self._cutter()

        def encode(text: str) -> Located:
            ids: list[int] = []
            starts: list[int] = []
            at = 0
            for number, part in enumerate(cut(text)):
                found, begin = ([self.special[part]], [0]) if number % 2 else _located(processor, part)
                ids += found
                starts += [at + start for start in begin]
                at += len(part)
            return ids, starts

        return lambda texts: map(encode, texts)

    def _cutter(self) -> Callable[[str], list[str]]:
        """Return the function that cuts a text: texts, and between each two of them a special token."""
        if not self.special:
            return lambda text: [text]
        return re.compile(f"({'|'.join(map(re.escape, self.special))})").split


def _located(processor: Any, text: str) -> Located:
    """Return the ids of a text, and the character at which each begins; the library counts bytes."""
    pieces = processor.encode(text, return_type="proto").pieces
    raw = np.frombuffer(text.encode(), np.uint8)
    before = np.concatenate([[0], np.cumsum((raw & 0xC0) != 0x80)])  # characters that begin before each byte
    return [piece.id for piece in pieces], [int(before[piece.begin]) for piece in pieces]
