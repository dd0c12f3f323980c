"""Options that name a tokenizer: mconv's, and Megatron's under their own names."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from mconv.cli import located
from mconv.errors import MconvError

if TYPE_CHECKING:
    from mconv.train.data.tokenizers.choice import TokenizerChoice

Type = Literal[
    "HuggingFaceTokenizer", "FalconTokenizer", "SentencePieceTokenizer", "GPTSentencePieceTokenizer", "Llama2Tokenizer",
    "GPT2BPETokenizer", "NullTokenizer",
]  # fmt: skip
"""Types of `train/data/tokenizers/types.py`, which is not imported for a help text."""
FALCON = Path("tiiuae/falcon-40b")
"""The tokenizer of every FalconTokenizer for which no folder is given, as Megatron-LLM has it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenizerOptions:
    """Options of commands that tokenize."""

    tokenizer: Annotated[
        Path | None,
        Parameter(
            name=["--tokenizer", "--tokenizer-model"],
            help="Where the model's tokenizer is: a Hugging Face folder, a Megatron checkpoint that mconv made, a "
            "repository ORG/NAME in the Hub's cache, or a SentencePiece model (tokenizer.model).",
        ),
    ] = None
    tokenizer_type: Annotated[
        Type | None, Parameter(help="Megatron's name for the type. Default: recognized by the files.")
    ] = None
    vocab_file: Annotated[
        Path | None, Parameter(help="GPT-2's vocab.json, with --merge-file; or a SentencePiece model.")
    ] = None
    merge_file: Annotated[Path | None, Parameter(help="GPT-2's merges.txt.")] = None
    vocab_size: Annotated[
        int | None, Parameter(help="Number of ids of a NullTokenizer, whose text is ids; the next one ends documents.")
    ] = None
    new_tokens: Annotated[
        bool | None,
        Parameter(
            help="Add the tokens CLS, SEP, EOD, MASK and PAD to a SentencePiece model, as Megatron does. Default: only "
            "with --tokenizer-type SentencePieceTokenizer.",
            negative="--no-new-tokens",
        ),
    ] = None
    vocab_extra_ids: Annotated[int, Parameter(help="Add this many tokens <extra_id_0>, <extra_id_1>, ...")] = 0
    vocab_extra_ids_list: Annotated[
        str | None, Parameter(help="Add these tokens, separated by commas, behind all others.")
    ] = None

    def choice(self) -> "TokenizerChoice":
        """Return the tokenizer that was chosen, a folder found in a checkpoint or the Hub's cache."""
        from mconv.train.data.tokenizers.choice import TokenizerChoice

        path = self._falcon() if self.tokenizer is None and self.tokenizer_type == "FalconTokenizer" else self.tokenizer
        return TokenizerChoice(
            path=path if path is None or path.is_file() else located.tokenizer(path),
            type=self.tokenizer_type, vocab_file=self.vocab_file, merge_file=self.merge_file, vocab_size=self.vocab_size,
            new_tokens=self.new_tokens, extra_ids=self.vocab_extra_ids,
            extra_tokens=() if self.vocab_extra_ids_list is None else tuple(self.vocab_extra_ids_list.split(",")),
        )  # fmt: skip

    @staticmethod
    def _falcon() -> Path:
        folder = located.local(FALCON)
        if not folder.is_dir():
            raise MconvError(
                f"a FalconTokenizer without --tokenizer is that of {FALCON}, which is not in the Hub's cache; fetch it "
                f"with `hf download {FALCON} --include 'tokenizer*'`, or name the folder of another"
            )
        return folder
