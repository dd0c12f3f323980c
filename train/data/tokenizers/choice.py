"""The tokenizer that a user chose, by mconv's options or by Megatron's."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenizerChoice:
    """The options that name a tokenizer."""

    path: Path | None = None
    """A tokenizer's folder, or the file of a SentencePiece model."""
    type: str | None = None
    """Megatron's name of the type; None: by the files."""
    vocab_file: Path | None = None
    merge_file: Path | None = None
    vocab_size: int | None = None
    """Numbers below it are ids, of a text that is numbers (NullTokenizer)."""
    new_tokens: bool | None = None
    """True to add Megatron's five tokens to a SentencePiece model; None: where `type` says SentencePieceTokenizer."""
    extra_ids: int = 0
    """Number of tokens <extra_id_0>, <extra_id_1>, ... to add."""
    extra_tokens: tuple[str, ...] = ()
    """Tokens to add behind all others, in their order."""

    @property
    def added(self) -> tuple[str, ...]:
        """The tokens that the user adds, in the order of their ids."""
        return (*(f"<extra_id_{number}>" for number in range(self.extra_ids)), *self.extra_tokens)


def choice_of(tokenizer: Path | TokenizerChoice) -> TokenizerChoice:
    """Return the choice of a tokenizer that is given by its folder or file alone."""
    return TokenizerChoice(path=tokenizer) if isinstance(tokenizer, Path) else tokenizer
