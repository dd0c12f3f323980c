"""This machine and its disks, as every part of mconv asks for them."""

import contextlib
import os
from pathlib import Path

SLAB_BYTES = 4 << 20
"""Bytes of a logical tensor in hand at once: a slab and its gathered and cast copies stay in the processor's cache."""


def cores() -> int:
    """Return how many processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def workers() -> int:
    """Return how many threads convert: one a processor of this process; under torchrun, of this rank's share of them."""
    return max(1, min(16, cores() // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))))


def memory() -> dict[str, int] | None:
    """Return the bytes of this machine or container, and those available; None where that is not known."""
    try:
        lines = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
        size, free = (int(lines[name].split()[0]) << 10 for name in ("MemTotal", "MemAvailable"))
    except (OSError, KeyError, ValueError):
        return None
    limit = Path("/sys/fs/cgroup/memory.max")
    text = limit.read_text().strip() if limit.is_file() else "max"
    bound = int(text) if text.isdigit() else size
    return {"size": min(size, bound), "free": min(free, bound)}


def existing(path: Path) -> Path:
    """Return a path, or the nearest folder above it that exists."""
    return next(one for one in (path.absolute(), *path.absolute().parents) if one.exists())


def writable(folder: Path) -> bool:
    """Return whether files can be made in a folder, or the folder itself where it is not there yet."""
    near = existing(folder)
    return near.is_dir() and os.access(near, os.W_OK | os.X_OK)


def nbytes(folder: Path) -> int:
    """Return the bytes of all files of a folder; what goes away meanwhile does not count."""
    total = 0
    for place, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):
                total += Path(place, name).stat().st_size
    return total
