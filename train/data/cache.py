"""Index files of datasets, made once: beside their place, which they get when they are whole."""

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

from mconv.convert.staging import sync
from mconv.errors import ConfigError, FormatError
from mconv.train.agree import on_rank_0
from mconv.train.data.index import beside
from mconv.train.parallel import rank

PIECE = 1 << 24
"""Bytes of an index that are read together."""


def cached(make: Callable[[Path], Any], *, cache: Path, prefixes: Sequence[Path], told: Any) -> Any:
    """What `make` builds, with its index files in a folder under `cache` of which nobody sees a part.

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
    """(folder to use, folder where it belongs): the same one where an earlier start has filled it.

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
    """A name that changes with what is asked for, and when a prefix is written anew with documents of other lengths."""
    digest = hashlib.sha256(json.dumps([*map(str, prefixes), told]).encode())
    for prefix in prefixes:
        file = xxhash.xxh3_128()
        with beside(prefix, ".idx").open("rb") as index:
            while piece := index.read(PIECE):
                file.update(piece)
        digest.update(file.digest())
    return digest.hexdigest()[:32]


def _check(folder: Path) -> None:
    """Raises FormatError at an index file that is damaged: megatron-core would take it for a pickle."""
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
