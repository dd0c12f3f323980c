"""Facts of a PEFT adapter's folder that are known without its base: for `inspect` and the model card."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mconv.convert.formats.hf import read_json
from mconv.convert.formats.tensors import Located
from mconv.convert.peft import config_keys as peft_keys
from mconv.convert.peft import folder as peft
from mconv.convert.peft.names import BEFORE, WRAPPERS

_LOW = re.compile(r"(.+)\.lora_(?:embedding_)?(A|B)(?:\.[^.]+)?(?:\.weight)?")


def facts(folder: Path) -> dict[str, Any]:
    """Return base, ranks, scale, modules and sizes of an adapter, and what stands in the way of merging it, if anything.

    Ranks are the tensors' own. Raises FormatError where a file is missing or damaged.
    """
    config, tensors = read_json(folder / peft.CONFIG), peft.tensors(folder)
    ranks = _ranks(tensors)
    dtypes = sorted({str(where.dtype) for where in tensors.values()})
    return {
        "path": str(folder), "format": "peft", "holds": "a PEFT adapter, not a model",
        "peft_type": config.get("peft_type"), "base": config.get("base_model_name_or_path"),
        "rank": _one(sorted(set(ranks.values()))), "alpha": _one(_alphas(config)),
        "scale": "alpha / sqrt(rank)" if config.get("use_rslora") else "alpha / rank",
        "targets": list(dict.fromkeys(module.rpartition(".")[2] for module in ranks)), "modules": len(ranks),
        "whole_modules": _wholes(tensors), "parameters": sum(_elements(where) for where in tensors.values()),
        "bytes": sum(where.nbytes for where in tensors.values()), "dtype": _one(dtypes),
        "problems": peft_keys.problems(config),
        "next": f"mconv lora merge {folder} --base BASE --out FOLDER, and then verify the result",
    }  # fmt: skip


def _elements(where: Located) -> int:
    return where.nbytes // where.dtype.itemsize


def _one(values: list[Any]) -> Any:
    """Return the value, or all of several."""
    return values[0] if len(values) == 1 else values


def _ranks(tensors: Mapping[str, Located]) -> dict[str, int]:
    """Return the rank of each module that has factors, by its name in the file."""
    matches = [(found, where) for key, where in tensors.items() if (found := _LOW.fullmatch(key)) and where.shape]
    return {_bare(found[1]): where.shape[0] for found, where in matches if found[2] == "A"}


def _alphas(config: Mapping[str, Any]) -> list[Any]:
    """Return alpha, and those of single modules."""
    pattern = config.get("alpha_pattern")
    own = pattern.values() if isinstance(pattern, dict) else []
    return list(dict.fromkeys([config.get("lora_alpha", 8), *(v for v in own if isinstance(v, int | float))]))


def _wholes(tensors: Mapping[str, Located]) -> list[str]:
    """Return the modules that the file holds whole."""
    keys = [key for key in tensors if not _LOW.fullmatch(key) and key.rpartition(".")[2] in ("weight", "bias")]
    return list(dict.fromkeys(_bare(key.rpartition(".")[0].removesuffix(".base_layer")) for key in keys))


def _bare(path: str) -> str:
    """Return a module's name without what PEFT and wrappers put before it."""
    parts = [part for part in path.split(".") if part not in WRAPPERS]
    while len(parts) > 1 and parts[0] in BEFORE and parts[1] not in ("layers", "embed_tokens", "norm"):
        parts = parts[1:]
    return ".".join(parts)
