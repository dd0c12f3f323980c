"""Processes that end with the one that started them."""

import ctypes
import sys

PR_SET_PDEATHSIG = 1  # linux/prctl.h


def end_with_parent(number: int) -> None:
    """Ask the kernel for a signal when the parent is gone, killed without a chance to end us; on Linux alone.

    Else ranks would train on, and save, beside those of the next job.
    """
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, number, 0, 0, 0)
