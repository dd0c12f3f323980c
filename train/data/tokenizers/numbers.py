"""Megatron's NullTokenizer: a text that is ids already, as numbers with white space between them."""

from dataclasses import dataclass

from mconv.errors import ConfigError, FormatError
from mconv.train.data.tokenizers.choice import TokenizerChoice
from mconv.train.data.tokenizers.encoders import Encode, Locate, Located
from mconv.train.data.tokenizers.loaded import LoadedTokenizer


def load(choice: TokenizerChoice, *, type: str) -> LoadedTokenizer:
    """Return the tokenizer of numbers below a size. The number behind the last one ends documents."""
    if not choice.vocab_size or choice.vocab_size < 1:
        raise ConfigError(f"--tokenizer-type {type} needs --vocab-size: ids are the numbers below it")
    end = choice.vocab_size
    encoder = NumberEncoder(size=end)
    return LoadedTokenizer(
        type=type, place=f"{type} of {end}", files={}, size=end + 1, bos=None, eos=end, special=frozenset({end}),
        encoder=encoder,
    )  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class NumberEncoder:
    """A text of numbers below a size."""

    size: int

    def open(self) -> Encode:
        """Return the function from texts to their numbers."""
        return lambda texts: map(self._numbers, texts)

    def locate(self) -> Locate:
        """Return the function from texts to their numbers, and to where each begins."""
        return lambda texts: map(self._located, texts)

    def _numbers(self, text: str) -> list[int]:
        words = text.split()
        for word in words:
            if not (word.isascii() and word.isdecimal() and len(word) < 19 and int(word) < self.size):
                raise FormatError(f"the text {text[:40]!r} holds {word[:20]!r}, which is no number below {self.size}")
        return [*map(int, words)]

    def _located(self, text: str) -> Located:
        starts = [at for at, letter in enumerate(text) if not letter.isspace() and (at == 0 or text[at - 1].isspace())]
        return self._numbers(text), starts
