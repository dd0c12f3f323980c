"""A tokenizer that was found: its files, its size, its special tokens, and how workers open it."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from mconv.errors import ConfigError
from mconv.train.data.tokenizers.encoders import Encoder


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedTokenizer:
    """All that tokenizing needs to know of a tokenizer."""

    type: str
    """Megatron's name of its type."""
    place: str
    """The folder or file that it was read from, for messages and the record."""
    files: Mapping[str, Path]
    """The tokenizer's files, by the names that they have in a model's folder."""
    size: int
    """Ids, added ones among them."""
    bos: int | None
    eos: int | None
    """The id that ends a document: EOS, or Megatron's <EOD> where that was added."""
    added: tuple[str, ...] = ()
    """Tokens that are in none of the files, in the order of their ids, the last of the vocabulary."""
    begins_with_bos: bool = False
    """True if Megatron's tokenizer of this type puts BOS before each document."""
    special: frozenset[int] = frozenset()
    """Ids of special tokens."""
    folder: Path | None = None
    """The folder that transformers reads it from, with its chat template; None if it is none of transformers'."""
    encoder: Encoder

    def marks(self, *, append_eod: bool, prepend_bos: bool) -> dict[str, int | None]:
        """Return the ids to append and to prepend. Raises ConfigError if the tokenizer lacks one that is asked for."""
        wanted = {"append_eod": (append_eod, self.eos), "prepend_bos": (prepend_bos or self.begins_with_bos, self.bos)}
        for name, (asked, token) in wanted.items():
            if asked and token is None:
                raise ConfigError(f"{self.place}: {name} was asked for, but the tokenizer has no such token")
        return {name: token if asked else None for name, (asked, token) in wanted.items()}


def special(*numbers: int | None) -> frozenset[int]:
    """Return ids of special tokens, without those that a tokenizer lacks."""
    return frozenset(number for number in numbers if number is not None)
