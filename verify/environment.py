"""Versions and machine behind a verdict, and whether two models fit into this machine's memory."""

import contextlib
import ctypes
import os
import platform
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mconv
from mconv.convert.checkpoint.model import SourceModel
from mconv.convert.folders.host import cores
from mconv.extras import version

PACKAGES = ("torch", "transformers", "megatron-core", "safetensors", "numpy")
LIMIT = Path("/sys/fs/cgroup/memory.max")
"""Memory limit of a container, which the machine's own figures do not show."""
SHARE = 0.6
"""Share of the available memory that models may take; beyond it they are streamed from disk."""


M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""Parameters of glibc's `mallopt`."""
LARGE = 1 << 30
"""Largest tensor, in bytes, that malloc puts into reused memory."""


def reuse_memory() -> None:
    """Let glibc keep the memory of large tensors for the next ones: the kernel clears every page that it hands out.

    On a virtual machine this clearing had taken 40 % of a verification. Does nothing without glibc.
    """
    with contextlib.suppress(OSError, AttributeError, TypeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(M_MMAP_THRESHOLD, LARGE)
        mallopt(M_TRIM_THRESHOLD, 2 * LARGE - 1)


@contextlib.contextmanager
def all_cores(threads: int | None) -> Iterator[None]:
    """Give torch `threads` threads within the context, while the other ranks wait; None changes nothing."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(threads or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def spare_threads() -> int | None:
    """Return the threads for one rank while the others wait: all cores, or None if OMP_NUM_THREADS is set."""
    if "OMP_NUM_THREADS" in os.environ:
        return None
    return cores()


def describe(*, seconds: float) -> dict[str, Any]:
    """Return versions, machine, time and memory of this process."""
    import torch

    return {
        "mconv": mconv.__version__,
        **{name: version(name) or "not installed" for name in PACKAGES},
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
        "threads": torch.get_num_threads(),
        "seconds": round(seconds, 3),
        "peak_rss_bytes": _peak(),
    }


def _peak() -> int | None:
    """Return the peak memory of this process in bytes; None on Windows."""
    if sys.platform == "win32":
        return None
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def too_large(a: SourceModel, b: SourceModel, *, dtype_bytes: int, logits: int) -> bool:
    """Return whether a model does not fit. One is in memory at a time, and while it is read its file counts as well.

    `logits`: elements of one model's logits.
    """
    largest = max(c.parameters * (dtype_bytes + c.dtype.itemsize) for c in (a, b))
    return largest + 2 * 4 * logits > SHARE * available()


def available() -> int:
    """Return the bytes that this process can still allocate on the device that models run on."""
    import psutil
    import torch

    if torch.cuda.is_available():
        return int(torch.cuda.mem_get_info()[0])
    free = int(psutil.virtual_memory().available)
    text = LIMIT.read_text().strip() if LIMIT.is_file() else "max"
    return free if text == "max" else min(free, int(text))
