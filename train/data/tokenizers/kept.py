"""What transformers made of a tokenizer's folder, kept in the user's cache: its import takes longer than some inputs.

A file is named by a digest over every file of the folder that a tokenizer can be made of, over the tokens that the user
adds, and over the versions of the packages: with anything changed it is another one. It may be deleted at any time.
MCONV_CACHE names another folder than ~/.cache/mconv; empty, it keeps nothing.
"""

import hashlib
import json
import os
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mconv
from mconv import extras
from mconv.convert.folders.staging import write_whole

LARGEST = 1 << 26
"""Bytes of a file up to which it may be one of the tokenizer's; larger ones are weights."""
MOST = 16
"""Tokenizers that are kept; the one that was used longest ago goes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """What is kept of a tokenizer."""

    size: int
    bos: int | None
    eos: int | None
    special: list[int]
    json: str
    """The tokenizer as the package tokenizers reads it; empty where only transformers can call it."""
    special_as_text: bool


def place(folder: Path, added: Iterable[str]) -> Path | None:
    """Return the file that a tokenizer is kept in, whether or not it is there; None where nothing is to be kept."""
    root = os.environ.get("MCONV_CACHE", str(Path("~/.cache/mconv").expanduser()))
    if not root or not folder.is_dir():
        return None
    digest = hashlib.sha256()
    versions = [mconv.__version__, extras.version("transformers"), extras.version("tokenizers")]
    digest.update(json.dumps([versions, [*added]]).encode())
    for path in sorted(folder.iterdir()):
        if path.is_file() and path.stat().st_size <= LARGEST:
            digest.update(f"\0{path.name}\0".encode() + hashlib.sha256(path.read_bytes()).digest())
    return Path(root) / "tokenizers" / f"{digest.hexdigest()}.json"


def find(path: Path | None) -> Kept | None:
    """Return what is kept in a file, None if that is nothing."""
    with suppress(OSError, ValueError, TypeError):
        if path:
            found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            os.utime(path)
            return Kept(**found)
    return None


def keep(path: Path | None, found: Kept) -> None:
    """Write a file, whole or not at all. A cache that cannot be written to is none."""
    if not path:
        return
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        fields = {name: getattr(found, name) for name in Kept.__dataclass_fields__}
        write_whole(path, json.dumps(fields), durable=False, at_once=True)
        newest = sorted(path.parent.glob("*.json"), key=lambda one: one.stat().st_mtime, reverse=True)
        for old in newest[MOST:]:
            old.unlink(missing_ok=True)
