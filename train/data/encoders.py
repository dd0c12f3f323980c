"""Tokenizers as the workers use them: what is sent to a worker, and what it opens.

A tokenizer is added by a frozen dataclass with `open()`, which returns a function from texts to the ids of each, without
BOS and EOS. It is pickled, so it holds what the tokenizer is made of, or the folder. `open` imports the library, once in
each worker.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from mconv.train.data.record import load_tokenizer

Encode = Callable[[list[str]], Iterable[list[int]]]
"""A function from texts to the ids of each."""
WORDS = 1 << 20
"""Words of which a BPE keeps the ids, so that it merges each once; the library keeps the first 10 thousand."""


@runtime_checkable
class Encoder(Protocol):
    """What a worker opens a tokenizer with."""

    def open(self) -> Encode:
        """Return the function that tokenizes."""


@dataclass(frozen=True, slots=True)
class RustEncoder:
    """A tokenizer of the package tokenizers, called without transformers around it."""

    json: str
    special_as_text: bool = False
    """True where the spelling of a special token is text like any other."""

    def open(self) -> Encode:
        """Return the function that tokenizes; it gives the ids that transformers' call gives."""
        from tokenizers import Tokenizer

        tokenizer = Tokenizer.from_str(self.json)
        tokenizer.no_truncation()
        tokenizer.no_padding()
        tokenizer.encode_special_tokens = self.special_as_text
        if hasattr(tokenizer.model, "_resize_cache"):
            tokenizer.model._resize_cache(WORDS)
        return lambda texts: (coded.ids for coded in tokenizer.encode_batch_fast(texts, add_special_tokens=False))


@dataclass(frozen=True, slots=True)
class TransformersEncoder:
    """A tokenizer that only transformers can call: one in Python, or of a class with a call of its own."""

    folder: Path

    def open(self) -> Encode:
        """Return the function that tokenizes."""
        tokenizer = load_tokenizer(self.folder)

        def encode(texts: list[str]) -> Iterable[list[int]]:
            coded: Iterable[list[int]] = tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]
            return coded

        return encode


def encoder_of(folder: Path) -> Encoder:
    """Return how workers open the tokenizer of a Hugging Face folder."""
    tokenizer = load_tokenizer(folder)
    if _is_plain(tokenizer):
        return RustEncoder(tokenizer.backend_tokenizer.to_str(), bool(tokenizer.split_special_tokens))
    return TransformersEncoder(folder)


def _is_plain(tokenizer: Any) -> bool:
    """Return whether transformers' call passes texts on to the package tokenizers as they are."""
    if not tokenizer.is_fast:
        return False
    from transformers import PreTrainedTokenizerFast

    own, plain = type(tokenizer), PreTrainedTokenizerFast
    return all(getattr(own, name) is getattr(plain, name) for name in ("__call__", "_encode_plus"))
