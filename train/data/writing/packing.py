"""Write compressed files."""

import bz2
import importlib
import lzma
from collections.abc import Callable
from functools import partial
from typing import Any

from isal import igzip

from mconv import extras


def _zst(file: Any) -> Any:
    extras.need("data", "zstandard", to="writing .zst")
    return importlib.import_module("zstandard").ZstdCompressor().stream_writer(file, closefd=False)


PACKERS: dict[str, Callable[[Any], Any]] = {
    ".gz": lambda file: igzip.IGzipFile(filename="", mode="wb", fileobj=file, mtime=0),
    ".bz2": partial(bz2.open, mode="wb"),
    ".xz": partial(lzma.open, mode="wb"),
    ".zst": _zst,
}
"""Compressors of an open file, by suffix."""
