"""megatron-core's distributed checkpoint (`torch_dist`), written: by a conversion, and by each rank of a training run.

What the files hold is listed in `torch_dist.py`, which reads them. A rank's file is laid out from names, shapes and
dtypes alone: so the index is known before a byte is written, and writers need to say no more than that they are done.
"""

import json
import os
import pickle
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mconv.convert.formats import pack
from mconv.convert.formats.container import BACKENDS, COMMON, VERSIONS
from mconv.convert.formats.dtype import DType, in_torch
from mconv.convert.formats.file_layout import Extent, FileLayout
from mconv.convert.formats.tensors import Target
from mconv.convert.formats.torch_dist import INDEX, split_key

if TYPE_CHECKING:
    import torch

BACKEND = {name: values[0] for name, values in BACKENDS.items()}
FILE_LIMIT = 4 << 30
"""Bytes after which a conversion begins a further .distcp: any number is legal, and one huge file is a nuisance."""
DATA = "0"
"""The one tensor of an archive."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Content:
    """One rectangle of a global tensor; without a dtype an object, of which only the key counts."""

    key: str
    dtype: DType | None = None
    whole: tuple[int, ...] = ()
    """Shape of the global tensor."""
    offsets: tuple[int, ...] = ()
    shape: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Entry:
    """An archive's content, and its range of bytes in a file."""

    content: Content
    file: str
    start: int
    length: int


@dataclass(frozen=True, slots=True)
class Part:
    """An archive that is laid out in a file, and what it is to hold."""

    entry: Entry
    archive: pack.Archive

    @property
    def begin(self) -> int:
        """The offset in the file of the tensor's bytes."""
        return self.entry.start + self.archive.begin(DATA)


# ---- layout ----------------------------------------------------------------------------------------------------------
@lru_cache(maxsize=256)  # all layers of a model have the same
def tensor_archive(shape: tuple[int, ...], dtype: DType) -> pack.Archive:
    """Lay out an archive of one tensor, to be written later."""
    target = Target(DATA, shape, dtype)
    return pack.lay_out(pack.Promise(shape, dtype, DATA), [(DATA, target.nbytes)])


def parts(archives: Iterable[tuple[Content, pack.Archive]], *, rank: int = 0, limit: int | None = None) -> Iterator[Part]:
    """Lay archives end to end in a rank's file; a further one is begun when one holds `limit` bytes."""
    number = at = 0
    for content, archive in archives:
        if limit is not None and at >= limit:
            number, at = number + 1, 0
        length = archive.size
        yield Part(Entry(content, f"__{rank}_{number}.distcp", at, length), archive)
        at += length


def lay_out(
    targets: list[Target], shapes: dict[str, tuple[int, ...]], common: dict[str, Any], extra: list[str]
) -> FileLayout:
    """Lay out a converted checkpoint of these chunks. Headers, directories and index are written at the end.

    `shapes`: the whole shape of each global tensor. `extra`: keys of the empty objects that are asked for.
    """
    wanted = [(_content(target, shapes), tensor_archive(target.shape, target.dtype)) for target in targets]
    laid = list(parts([*wanted, *((Content(key=key), pack.lay_out([None])) for key in extra)], limit=FILE_LIMIT))
    keys = [*(target.key for target in targets), *(None for _ in extra)]
    sizes = {part.entry.file: part.entry.start + part.entry.length for part in laid}

    def finish(folder: Path, crcs: Mapping[str, int]) -> None:
        for name in sizes:
            with (folder / name).open("r+b") as file:
                for key, part in zip(keys, laid, strict=True):
                    if part.entry.file == name:
                        part.archive.write(file, start=part.entry.start, crcs={DATA: crcs[key]} if key else {})
        write_index(folder, [part.entry for part in laid])
        write_common(folder, common)
        write_versions(folder)

    extents = {key: Extent(part.entry.file, part.begin) for key, part in zip(keys, laid, strict=True) if key}
    return FileLayout(extents=extents, sizes=sizes, checksums=True, finish=finish)


def _content(target: Target, shapes: Mapping[str, tuple[int, ...]]) -> Content:
    key, offsets = split_key(target.key)
    return Content(key=key, dtype=target.dtype, whole=shapes[key], offsets=offsets, shape=target.shape)


# ---- files -----------------------------------------------------------------------------------------------------------
def write_file(path: Path, laid: "Sequence[tuple[Part, torch.Tensor | None]]") -> None:
    """Write all parts of a rank's file with their tensors (None: an object), front to back, and flush it to the disk."""
    from mconv.convert.formats.mapped import bytes_of

    with path.open("wb") as file:
        for part, tensor in laid:
            part.archive.stream(file, {} if tensor is None else {DATA: bytes_of(tensor)})
        file.flush()
        os.fsync(file.fileno())


def write_index(folder: Path, entries: Iterable[Entry]) -> None:
    """Write `.metadata`: every global tensor and object of all files, and where each chunk lies."""
    from torch import Size
    from torch.distributed.checkpoint import metadata as meta
    from torch.distributed.checkpoint.filesystem import _StorageInfo

    described: dict[str, Any] = {}
    stored: dict[Any, Any] = {}
    for entry in entries:
        held, offsets = entry.content, None
        if held.dtype is None:
            described[held.key] = meta.BytesStorageMetadata()
        else:
            offsets, properties = Size(held.offsets), meta.TensorProperties(dtype=in_torch(held.dtype))
            whole = meta.TensorStorageMetadata(properties, Size(held.whole), [])
            chunks = described.setdefault(held.key, whole).chunks
            chunks.append(meta.ChunkStorageMetadata(offsets, Size(held.shape)))
        stored[meta.MetadataIndex(held.key, offsets)] = _StorageInfo(entry.file, entry.start, entry.length)
    with (folder / INDEX).open("wb") as file:
        pickle.dump(meta.Metadata(state_dict_metadata=described, planner_data=None, storage_data=stored), file)


def write_common(folder: Path, common: Mapping[str, Any]) -> None:
    """Write `common.pt`: what is not sharded. megatron-core 0.19 reads it, too, though its own saves have none."""
    pack.save(folder / COMMON, dict(common))


def write_versions(folder: Path) -> None:
    """Write `metadata.json`, which makes the folder a checkpoint."""
    (folder / VERSIONS).write_text(json.dumps(BACKEND), encoding="utf-8")
