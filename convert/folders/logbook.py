"""A log of what was done with checkpoints after they were made: verified, pushed. Only `mconv status` reads it.

One line of JSON each, in a hidden file of the folder that the checkpoints lie in: nothing of it is published, carried
along by a conversion, or believed by a gate.
"""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from mconv.convert.folders import manifest
from mconv.convert.folders.kinds import TRACKER
from mconv.errors import MconvError

FILE = ".mconv-log.jsonl"
LIMIT = 10_000_000
"""Bytes of the log that are read, from its end."""


def root_of(folder: Path) -> Path:
    """Return what a user calls the checkpoint whose tensors `folder` holds: its root, if it is one iteration's."""
    folder = folder.resolve()
    return folder.parent if (folder.parent / TRACKER).is_file() else folder


def stamp(folder: Path) -> str:
    """Return a cheap fingerprint of a checkpoint's files (names, sizes, times of change), but its manifest's."""
    found = []
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_file() and name != manifest.NAME and not name.startswith("."):
            status = path.stat()
            found.append((name, status.st_size, status.st_mtime_ns))
    return hashlib.sha256(json.dumps(found).encode()).hexdigest()[:16]


def add(folder: Path, what: str, **facts: Any) -> None:
    """Note what was done with the checkpoint in `folder`. Where nothing can be written, nothing is noted."""
    try:
        root = root_of(folder)
        if any(part.startswith("models--") for part in root.parts):  # the Hub's cache is its client's
            return
        name = folder.resolve().relative_to(root.parent).as_posix()
        line = {"what": what, "of": name, "made": _made(folder), "stamp": stamp(folder), "when": manifest.now(), **facts}
        follow = getattr(os, "O_NOFOLLOW", 0)  # Windows has none
        handle = os.open(root.parent / FILE, os.O_WRONLY | os.O_CREAT | os.O_APPEND | follow, 0o644)
        try:
            os.write(handle, (json.dumps(line) + "\n").encode())
        finally:
            os.close(handle)
    except OSError:
        return


def read(folder: Path) -> list[dict[str, Any]]:
    """Return what was done with the checkpoint in `folder`, the earliest first; `same`: its files are as they were.

    What was done with another one that lay there before is left out.
    """
    root, made = root_of(folder), _made(folder)
    name = folder.resolve().relative_to(root.parent).as_posix()
    entries = [entry for entry in _lines(root.parent / FILE) if (entry.get("of"), entry.get("made")) == (name, made)]
    now = stamp(folder) if entries else ""
    return [{**entry, "same": entry.get("stamp") == now} for entry in entries]


def _made(folder: Path) -> str | None:
    """Return the time at which a checkpoint was made, by its manifest."""
    try:
        return (manifest.read(folder) or {}).get("made")
    except MconvError:
        return None


def _lines(file: Path) -> list[dict[str, Any]]:
    try:
        with file.open("rb") as handle:
            handle.seek(max(0, file.stat().st_size - LIMIT))
            raw = handle.read(LIMIT).splitlines()
    except OSError:
        return []
    found = []
    for line in raw:
        try:
            entry = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(entry, dict):
            found.append(entry)
    return found
