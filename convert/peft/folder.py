"""PEFT's adapter folders: `adapter_config.json` and `adapter_model.safetensors` (or `.bin`), found and listed."""

from collections.abc import Collection
from pathlib import Path
from typing import Any

from mconv.convert.formats import bin
from mconv.convert.formats.dtype import BFLOAT16, FLOAT16, FLOAT32, FLOAT64
from mconv.convert.formats.hf import INDEX, SINGLE, read_header, read_json
from mconv.convert.formats.tensors import Located
from mconv.convert.peft import config_keys as peft_keys
from mconv.errors import FormatError, refuse

CONFIG, WEIGHTS, OLD_WEIGHTS = "adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"
MODELS = (SINGLE, INDEX, bin.SINGLE, bin.INDEX)
"""Files that make a folder a whole model."""
DTYPES = (FLOAT32, BFLOAT16, FLOAT16, FLOAT64)


def has_adapter(folder: Path) -> bool:
    """Return whether a PEFT adapter lies in a folder, alone or beside a whole model."""
    return (folder / CONFIG).is_file()


def is_adapter(folder: Path) -> bool:
    """Return whether a folder is a PEFT adapter and no model: a config.json may lie there, weights may not."""
    return has_adapter(folder) and not any((folder / name).is_file() for name in MODELS)


def unapplied(folder: Path) -> tuple[str, ...]:
    """Return the note on an adapter that lies beside a whole model, if one does."""
    if not has_adapter(folder) or is_adapter(folder):
        return ()
    return (
        f"{folder}: a PEFT adapter lies beside the weights; it is not applied here. transformers' from_pretrained "
        f"applies it where the package peft is installed: `mconv lora merge {folder} --out FOLDER` writes that model",
    )


def tensors(folder: Path) -> dict[str, Located]:
    """Return the tensors of an adapter's file; like PEFT, safetensors where there are both. Raises FormatError."""
    for name, read_file in ((WEIGHTS, read_header), (OLD_WEIGHTS, bin.read)):
        if (folder / name).is_file():
            if found := read_file(folder / name):
                return found
            raise FormatError(f"{folder / name} holds no tensors")
    raise FormatError(f"{folder} has {CONFIG}, but neither {WEIGHTS} nor {OLD_WEIGHTS}")


def config_of(folder: Path, *, ignore: Collection[str] = ()) -> dict[str, Any]:
    """Return an adapter's config. Raises FormatError, all problems at once, on what mconv does not do or know."""
    config = read_json(folder / CONFIG)
    refuse(peft_keys.problems(config, ignore=ignore), doing=f"{folder / CONFIG}", kind=FormatError)
    return config
