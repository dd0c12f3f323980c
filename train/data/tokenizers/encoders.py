"""Tokenizers as the workers use them: what is sent to a worker, and what it opens."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

Encode = Callable[[list[str]], Iterable[list[int]]]
"""A function from texts to the ids of each."""
Located = tuple[list[int], list[int]]
"""The ids of a text, and the character at which each begins."""
Locate = Callable[[list[str]], Iterable[Located]]
"""A function from texts to the ids of each and where they begin."""


@runtime_checkable
class Encoder(Protocol):
    """What a worker opens a tokenizer with. It is pickled; its functions import the library, once in each worker."""

    def open(self) -> Encode:
        """Return the function that tokenizes, without BOS and EOS."""

    def locate(self) -> Locate:
        """Return the function that tokenizes, and tells where in its text each token begins."""


@dataclass(frozen=True, slots=True)
class RustEncoder:
    """A tokenizer of the package tokenizers, called without transformers around it."""

    json: str = field(repr=False)
    special_as_text: bool = False
    """True where the spelling of a special token is text like any other."""

    def open(self) -> Encode:
        """Return the function that tokenizes; it gives the ids that transformers' call gives."""
        tokenizer = self._opened()
        return lambda texts: (coded.ids for coded in tokenizer.encode_batch_fast(texts, add_special_tokens=False))

    def locate(self) -> Locate:
        """Return the function that tokenizes, and tells where in its text each token begins."""
        tokenizer = self._opened()
        return lambda texts: (
            (coded.ids, [start for start, _ in coded.offsets])
            for coded in tokenizer.encode_batch(texts, add_special_tokens=False)
        )

    def _opened(self) -> Any:
        from tokenizers import Tokenizer

        tokenizer = Tokenizer.from_str(self.json)
        tokenizer.no_truncation()
        tokenizer.no_padding()
        tokenizer.encode_special_tokens = self.special_as_text
        return tokenizer
