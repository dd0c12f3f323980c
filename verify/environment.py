"""What a verdict was reached with, and whether two models fit into this machine's memory."""

import os
import platform
import resource
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import mconv
from mconv.convert.checkpoint import Checkpoint

PACKAGES = ("torch", "transformers", "megatron-core", "safetensors", "numpy")
LIMIT = Path("/sys/fs/cgroup/memory.max")
"""A container's own limit, which the machine's figures do not show."""
SHARE = 0.6
"""Of the memory at hand that models may take before they are run from disk."""


def describe(*, seconds: float) -> dict[str, Any]:
    """Versions, machine, time and memory of this process."""
    import torch

    return {
        "mconv": mconv.__version__,
        **{name: _version(name) for name in PACKAGES},
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
        "threads": torch.get_num_threads(),
        "seconds": round(seconds, 3),
        "peak_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024),
    }


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def too_large(a: Checkpoint, b: Checkpoint, *, dtype_bytes: int, logits: int) -> bool:
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
