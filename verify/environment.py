"""What a verdict was reached with, and whether two models fit into this machine's memory."""

import contextlib
import ctypes
import os
import platform
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mconv
from mconv.convert.checkpoint import SourceModel
from mconv.convert.host import cores
from mconv.extras import version

PACKAGES = ("torch", "transformers", "megatron-core", "safetensors", "numpy")
LIMIT = Path("/sys/fs/cgroup/memory.max")
"""A container's own limit, which the machine's figures do not show."""
SHARE = 0.6
"""Of the memory at hand that models may take before they are run from disk."""


M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""Of glibc's `mallopt`."""
LARGE = 1 << 30
"""Bytes of a tensor that malloc still takes from memory that was used before."""


def reuse_memory() -> None:
    """Let glibc keep what large tensors free, for the next ones: the kernel clears every page that it hands out anew.

    On a virtual machine that had been 40 % of a verification. Elsewhere than on glibc nothing happens.
    """
    with contextlib.suppress(OSError, AttributeError, TypeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(M_MMAP_THRESHOLD, LARGE)
        mallopt(M_TRIM_THRESHOLD, 2 * LARGE - 1)


@contextlib.contextmanager
def all_cores(threads: int | None) -> Iterator[None]:
    """While one rank works and the others wait, let it have `threads` of the machine's; None: those that it has."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(threads or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def spare_threads() -> int | None:
    """Threads that one rank may have while the others wait: all cores, unless the user says how many a process has."""
    if "OMP_NUM_THREADS" in os.environ:
        return None
    return cores()


def describe(*, seconds: float) -> dict[str, Any]:
    """Versions, machine, time and memory of this process."""
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
    """Return the most memory that this process has had, in bytes; None on Windows, which has another way to ask."""
    if sys.platform == "win32":
        return None
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def too_large(a: SourceModel, b: SourceModel, *, dtype_bytes: int, logits: int) -> bool:
    """Whether a model does not fit. One is in memory at a time, and while it is read its file counts as well.

    `logits`: elements of one model's logits.
    """
    largest = max(c.parameters * (dtype_bytes + c.dtype.itemsize) for c in (a, b))
    return largest + 2 * 4 * logits > SHARE * available()


def available() -> int:
    """Bytes that this process may still take: of the device that models run on."""
    import psutil
    import torch

    if torch.cuda.is_available():
        return int(torch.cuda.mem_get_info()[0])
    free = int(psutil.virtual_memory().available)
    text = LIMIT.read_text().strip() if LIMIT.is_file() else "max"
    return free if text == "max" else min(free, int(text))
