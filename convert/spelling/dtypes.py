"""One dtype for a model of many tensors, and what a config.json says of it."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from mconv.convert.formats.dtype import BY_NAME, DType
from mconv.convert.formats.jsonfile import read_json

KEYS = ("dtype", "torch_dtype")
"""The dtype in a config.json: the key of transformers 5, then that of transformers 4."""
DEFAULT = "float32"
"""The dtype of a config.json without these keys, as transformers 4 reads it."""


def most(counted: Iterable[tuple[DType, int]]) -> DType:
    """Return the dtype with the most elements, of pairs of a dtype and a number of elements."""
    total: dict[DType, int] = {}
    for dtype, elements in counted:
        total[dtype] = total.get(dtype, 0) + elements
    return max(total, key=lambda dtype: total[dtype])


def of(tensors: Iterable[Any]) -> DType:
    """Return the dtype of most elements of stored tensors."""
    return most((where.dtype, where.nbytes // where.dtype.itemsize) for where in tensors)


def said(config: dict[str, Any]) -> set[str]:
    """Return the dtypes that a config names, by their names as they stand there."""
    return {str(config[key]) for key in KEYS if config.get(key) is not None} or {DEFAULT}


def note(file: Path, config: dict[str, Any], held: DType) -> list[str]:
    """Return a line where a config.json names another dtype than most of its model's weights have."""
    words = {str(config[key]).removeprefix("torch.") for key in KEYS if config.get(key) is not None}
    other = " and ".join(sorted(words & BY_NAME.keys() - {held.name}))
    return [f"{file} names the dtype {other}, which transformers casts to; most weights are {held}"] if other else []


def set_in(file: Path, name: str) -> None:
    """Make a config.json name this dtype, under the keys that it has; nothing is written where it does already."""
    config = read_json(file)
    if said(config) == {name}:
        return
    keys = [key for key in KEYS if config.get(key) is not None] or KEYS
    changed = {**config, **dict.fromkeys(keys, name)}
    file.write_text(json.dumps(changed, indent=2) + "\n", encoding="utf-8")
