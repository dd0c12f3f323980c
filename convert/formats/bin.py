"""Hugging Face's older weights: `pytorch_model.bin`, one file or shards with an index. They are pickles, so they are
read by `archive`, which runs nothing of them; transformers prefers safetensors where a folder has both, and so do we.
"""

from pathlib import Path

from mconv.convert.formats import archive
from mconv.convert.formats.tensors import Located
from mconv.errors import FormatError

SINGLE, INDEX = "pytorch_model.bin", "pytorch_model.bin.index.json"
OLD = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
"""The first bytes of files of `torch.save` from before it wrote archives (torch 1.6): a pickled magic number."""


def read(path: Path) -> dict[str, Located]:
    """The tensors of one file by name; nothing is loaded. Two names may share bytes (a tied head).

    Raises FormatError on a file of another kind, a damaged or hostile one, and whatever in it is not a named tensor.
    """
    check_modern(path)
    state = archive.read(path)
    if not isinstance(state, dict):
        raise FormatError(f"{path} holds {type(state).__name__}, not a dictionary of names to tensors")
    for name, value in state.items():
        if not isinstance(name, str) or not isinstance(value, Located):
            inside = f"; the tensors lie within it: save {name!r} alone" if isinstance(value, dict) else ""
            raise FormatError(f"{path}: {str(name)[:60]!r} is {type(value).__name__}, not a tensor{inside}")
    return state


def check_modern(path: Path) -> None:
    """Refuse a file that `torch.save` wrote before it wrote archives: its bytes cannot be located without loading it."""
    with path.open("rb") as file:
        start = file.read(len(OLD))
    if start == OLD:
        raise FormatError(
            f"{path} is in the format that torch.save had before 1.6, which mconv does not read; rewrite it once, where "
            f"you trust it: `torch.save(torch.load({path.name!r}, weights_only=True), {path.name!r})`"
        )
