"""Index files of datasets, built once in a temporary folder, which is renamed when they are complete."""

import contextlib
import hashlib
import json
import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xxhash

from mconv.convert.folders.staging import sync
from mconv.errors import ConfigError, FormatError
from mconv.train.data.index import with_ending
from mconv.train.megatron.collectives import on_rank_0
from mconv.train.megatron.parallel import rank

PIECE = 1 << 24
"""Bytes of an index that are read together."""


def cached(make: Callable[[Path], Any], *, cache: Path, prefixes: Sequence[Path], told: Any) -> Any:
    """Return what `make` builds, its index files in a folder under `cache` that appears only when it is whole.

    All ranks call it: rank 0 writes the files, the others wait and read them. A second start with the same `prefixes`
    and the same `told` (plain values) finds them there, unless the data was written anew. Raises ConfigError where the
    folder cannot be used.
    """
    at, whole = on_rank_0(lambda: _begin(cache, prefixes, told))
    try:
        made = make(at)
    except BaseException as error:
        if rank() == 0 and at != whole:
            shutil.rmtree(at, ignore_errors=True)
        if isinstance(error, OSError) or isinstance(error.__cause__, OSError):
            raise ConfigError(f"data_cache {cache}: {_trouble(error)}") from error
        raise
    if torch.distributed.is_initialized():
        torch.distributed.barrier()
    if rank() == 0 and at != whole:
        _settle(at, whole)
    return made


def _trouble(error: BaseException) -> str:
    if rank() == 0:
        return f"index files cannot be written or read there ({error.__cause__ or error}); name another folder"
    return f"rank {rank()} does not find there what rank 0 has written; name a folder that all nodes share"


def _begin(cache: Path, prefixes: Sequence[Path], told: Any) -> tuple[Path, Path]:
    """Return (folder to use, folder where it belongs): twice the same one if an earlier start has filled it.

    Raises ConfigError where neither can be written, FormatError where the earlier start's files are damaged.
    """
    whole = cache / _key(prefixes, told)
    try:
        cache.mkdir(parents=True, exist_ok=True)
        if whole.is_dir():
            _check(whole)
            return whole, whole
        return Path(tempfile.mkdtemp(prefix=f".{whole.name}.", dir=cache)), whole
    except OSError as error:
        raise ConfigError(f"data_cache {cache} cannot be written to: {error.strerror}; name another folder") from error


def _key(prefixes: Sequence[Path], told: Any) -> str:
    """Return a name that changes with what is asked for, and with the lengths of the documents of each prefix."""
    digest = hashlib.sha256(json.dumps([*map(str, prefixes), told]).encode())
    for prefix in prefixes:
        file = xxhash.xxh3_128()
        with with_ending(prefix, ".idx").open("rb") as index:
            while piece := index.read(PIECE):
                file.update(piece)
        digest.update(file.digest())
    return digest.hexdigest()[:32]


def _check(folder: Path) -> None:
    """Raise FormatError at an index file that is damaged: megatron-core would take it for a pickle."""
    for path in sorted(folder.glob("*.npy")):
        try:
            np.lib.format.open_memmap(path, mode="r")
        except (ValueError, OSError) as error:
            raise FormatError(f"{path} is damaged ({error}); remove {folder}, and it is made anew") from error


def _settle(at: Path, whole: Path) -> None:
    """Give a folder its name, once the disk holds it. Where another run was faster, ours stays: ranks read from it."""
    at.chmod(0o755)  # as any other folder, which a temporary one is not
    for path in [*at.iterdir(), at]:
        sync(path)
    with contextlib.suppress(OSError):
        at.rename(whole)
