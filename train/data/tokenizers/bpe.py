"""GPT-2's tokenizer from its two files, vocab.json and merges.txt."""

from pathlib import Path

from mconv.convert.formats.jsonfile import read_json
from mconv.errors import ConfigError, FormatError
from mconv.train.data.tokenizers.choice import TokenizerChoice
from mconv.train.data.tokenizers.encoders import RustEncoder
from mconv.train.data.tokenizers.loaded import LoadedTokenizer, special

VOCAB, MERGES = "vocab.json", "merges.txt"
END = "<|endoftext|>"


def load(choice: TokenizerChoice, *, type: str) -> LoadedTokenizer:
    """Return the byte-level BPE of two files. The spelling of its end of text is text, as it is for Megatron."""
    files = _files(choice)
    vocab = read_json(files[VOCAB])
    ids = [number for number in vocab.values() if isinstance(number, int) and number >= 0]
    if len(ids) != len(vocab) or not ids:
        raise FormatError(f"{files[VOCAB]}: not the vocabulary of a BPE tokenizer: it does not map tokens to ids")
    end = vocab.get(END)
    return LoadedTokenizer(
        type=type, place=str(files[VOCAB]), files=files, size=max(ids) + 1, bos=end, eos=end,
        special=special(end), encoder=RustEncoder(_json(files, vocab), special_as_text=True),
    )  # fmt: skip


def _files(choice: TokenizerChoice) -> dict[str, Path]:
    """Return the two files, as they are given or as they lie in a folder. Raises MconvError where one is missing."""
    folder = choice.path
    given = {VOCAB: choice.vocab_file, MERGES: choice.merge_file}
    files = {name: path or (folder / name if folder and folder.is_dir() else None) for name, path in given.items()}
    if lacking := [name for name, path in files.items() if path is None]:
        raise ConfigError(
            f"{lacking[0]} is not given; a GPT-2 tokenizer is two files: --vocab-file vocab.json --merge-file merges.txt"
        )
    found = {name: path for name, path in files.items() if path}
    if missing := [str(path) for path in found.values() if not path.is_file()]:
        raise FormatError(f"{', '.join(missing)}: no such file; a GPT-2 tokenizer is vocab.json and merges.txt")
    return found


def _json(files: dict[str, Path], vocab: dict[str, int]) -> str:
    """Return the tokenizer as the package tokenizers writes it. Raises FormatError where it would drop text silently."""
    from tokenizers import ByteLevelBPETokenizer
    from tokenizers.pre_tokenizers import ByteLevel

    if lacking := set(ByteLevel.alphabet()) - vocab.keys():
        raise FormatError(
            f"{files[VOCAB]}: not the vocabulary of a byte-level BPE: {len(lacking)} of the 256 bytes have no token, so "
            "text would be lost"
        )
    try:
        built = ByteLevelBPETokenizer(str(files[VOCAB]), str(files[MERGES]))
    except Exception as error:  # the library has no type of its own
        raise FormatError(f"{files[MERGES]}: does not fit {files[VOCAB]} ({error})") from error
    return str(built.to_str())
