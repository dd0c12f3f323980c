"""Hugging Face folders: safetensors, one file or shards with an index, beside config and tokenizer files.

Where there are none, the older `.bin` files are taken (`bin.py`), held to the same.

The format: 8 bytes of header length, a JSON header {name: {dtype, shape, data_offsets}}, then the bytes without holes.
Source: the safetensors repository's format section.
"""

import json
import re
import struct
from collections.abc import Callable, Mapping
from math import prod
from pathlib import Path
from typing import Any

from mconv.convert.formats import bin
from mconv.convert.formats import dtype as d
from mconv.convert.formats.file_layout import Extent, FileLayout
from mconv.convert.formats.jsonfile import read_json as read_json
from mconv.convert.formats.tensors import Located, Target
from mconv.errors import FormatError

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
VARIANT = re.compile(r"(model|pytorch_model)\.[\w-]+(-\d+-of-\d+)?\.(safetensors|bin)")
"""Weights that transformers loads only where its caller names the variant, such as `model.fp16.safetensors`."""
HEADER_LIMIT = 100_000_000
"""The limit of the safetensors library."""
DTYPES = {
    "F64": d.FLOAT64, "F32": d.FLOAT32, "F16": d.FLOAT16, "BF16": d.BFLOAT16, "I64": d.INT64, "I32": d.INT32,
    "I16": d.INT16, "I8": d.INT8, "U8": d.UINT8, "BOOL": d.BOOL, "F8_E4M3": d.FLOAT8_E4M3FN, "F8_E5M2": d.FLOAT8_E5M2,
}  # fmt: skip
CODES = {dtype: code for code, dtype in DTYPES.items()}


def is_hf(folder: Path) -> bool:
    """Return whether a folder looks like a Hugging Face checkpoint (complete or not)."""
    return (folder / "config.json").is_file()


def open_folder(folder: Path) -> dict[str, Located]:
    """Every tensor of the folder by name; nothing is loaded. Raises FormatError on what is missing or damaged."""
    for single, index, read in ((SINGLE, INDEX, read_header), (bin.SINGLE, bin.INDEX, bin.read)):
        if (folder / index).is_file():
            tensors, shards = _open_sharded(folder, index, read)
            if (folder / single).is_file() and single not in shards:
                raise FormatError(
                    f"{folder} has both {single} and {index}, two models: remove the one that you do not want to convert"
                )
            return tensors
        if (folder / single).is_file():
            return read(folder / single)
    raise FormatError(f"{folder} has neither {SINGLE} nor {INDEX} (nor {bin.SINGLE} nor its index){_instead(folder)}")


def _instead(folder: Path) -> str:
    """Return a hint on weights that a folder has under other names."""
    other = sorted(p.name for p in folder.glob("*.bin")) + sorted(p.name for p in folder.glob("*.safetensors"))
    variants = [name for name in other if VARIANT.fullmatch(name)]
    advice = f"; {variants[0]} is a variant of them: to convert it, give it that name" if variants else ""
    return f"; it has {', '.join(other[:4])}{advice}" if other else ""


Reader = Callable[[Path], dict[str, Located]]


def _open_sharded(folder: Path, index: str, read: Reader) -> tuple[dict[str, Located], set[str]]:
    """The tensors that an index places in files of the folder, and the names of these files."""
    weight_map = read_json(folder / index).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(v, str) for v in weight_map.values()):
        raise FormatError(f"{folder / index}: no weight_map of tensor names to file names")
    tensors: dict[str, Located] = {}
    shards = set(weight_map.values())
    for shard in sorted(shards):
        if Path(shard).name != shard or shard in ("", ".", ".."):
            raise FormatError(f"{folder / index}: {shard!r} is not the name of a file in this folder")
        if not (folder / shard).is_file():
            raise FormatError(f"{folder / shard} is missing, but {index} names it; download the folder again")
        found = read(folder / shard)
        for name in sorted(found.keys() | {k for k, v in weight_map.items() if v == shard}):
            if name not in found:
                raise FormatError(f"{folder / shard} has no tensor {name!r}, but {index} says so")
            if weight_map.get(name) != shard:
                raise FormatError(f"{folder / shard} holds {name!r}, which {index} places in {weight_map.get(name)!r}")
        tensors.update(found)
    return tensors, shards


def read_header(path: Path) -> dict[str, Located]:
    """The tensors of one safetensors file. Raises FormatError unless header and size agree exactly."""
    size = path.stat().st_size
    with path.open("rb") as file:
        prefix = file.read(8)
        length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else HEADER_LIMIT + 1
        if length > min(HEADER_LIMIT, size - 8):
            raise FormatError(f"{path}: not a safetensors file, or truncated; copy it again")
        try:
            header = json.loads(file.read(length))
            entries = [_entry(path, 8 + length, name, value) for name, value in header.items() if name != "__metadata__"]
        except FormatError:
            raise
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise FormatError(f"{path}: damaged safetensors header ({type(error).__name__}: {error})") from error
    end = 8 + length
    for _, located in sorted(entries, key=lambda e: (e[1].offset, e[1].nbytes)):
        if located.offset != end:
            raise FormatError(f"{path}: its tensors overlap or leave a hole at byte {end}")
        end += located.nbytes
    if end != size:
        raise FormatError(f"{path} has {size} bytes, its header says {end}; the file is truncated or damaged")
    return dict(entries)


def _entry(path: Path, base: int, name: str, value: dict[str, Any]) -> tuple[str, Located]:
    if value["dtype"] not in DTYPES:
        raise FormatError(f"{path}: {name} has dtype {value['dtype']!r}, which mconv does not convert")
    dtype, shape = DTYPES[value["dtype"]], tuple(value["shape"])
    begin, end = value["data_offsets"]
    if not all(type(n) is int and n >= 0 for n in (*shape, begin, end)) or end - begin != prod(shape) * dtype.itemsize:
        raise FormatError(f"{path}: {name} of shape {shape} and its data_offsets {begin, end} disagree")
    return name, Located(path, base + begin, dtype, shape)


# ---- writing ---------------------------------------------------------------------------------------------------------
def shards(targets: list[Target], limit: int) -> list[list[Target]]:
    """Targets in order, in shards of at most `limit` bytes (one larger tensor has a shard of its own)."""
    out: list[list[Target]] = [[]]
    used = 0
    for target in targets:
        if out[-1] and used + target.nbytes > limit:
            out.append([])
            used = 0
        out[-1].append(target)
        used += target.nbytes
    return out


def shard_names(count: int) -> list[str]:
    """Return the file names of a folder of `count` shards."""
    return [SINGLE] if count == 1 else [f"model-{i:05d}-of-{count:05d}.safetensors" for i in range(1, count + 1)]


def _header(targets: list[Target]) -> bytes:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    at = 0
    for t in targets:
        header[t.key] = {"dtype": CODES[t.dtype], "shape": list(t.shape), "data_offsets": [at, at + t.nbytes]}
        at += t.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text


def lay_out(targets: list[Target], *, limit: int) -> FileLayout:
    """A folder's safetensors in shards of at most `limit` bytes. Headers and index are written at the end."""
    parts = shards(targets, limit)
    names = shard_names(len(parts))
    headers = {name: _header(part) for name, part in zip(names, parts, strict=True)}
    extents, sizes = {}, {}
    for name, part in zip(names, parts, strict=True):
        at = len(headers[name])
        for target in part:
            extents[target.key] = Extent(name, at)
            at += target.nbytes
        sizes[name] = at

    def finish(folder: Path, crcs: Mapping[str, int]) -> None:
        for name, header in headers.items():
            with (folder / name).open("r+b") as file:
                file.write(header)
        if len(parts) > 1:
            total, weight_map = sum(t.nbytes for t in targets), {t.key: extents[t.key].file for t in targets}
            index = {"metadata": {"total_size": total}, "weight_map": weight_map}
            (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")

    return FileLayout(extents=extents, sizes=sizes, checksums=False, finish=finish)
