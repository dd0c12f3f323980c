"""Locks on files. One ends with the process that holds it, however that ends."""

import os
import sys
from contextlib import suppress
from pathlib import Path

BINARY = getattr(os, "O_BINARY", 0)
"""A flag of os.open for Windows, where a descriptor is else one of text and \\n is written as \\r\\n."""

if sys.platform == "win32":
    import msvcrt

    _BYTE = 1 << 30
    """The offset of the locked byte, which nobody reads: on Windows a locked one cannot be read."""

    def take(descriptor: int, *, shared: bool = False) -> bool:
        """Lock an open file, alone or with others; False if somebody has it. OSError: its file system has no locks."""
        os.lseek(descriptor, _BYTE, os.SEEK_SET)
        try:
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        except PermissionError:
            return False
        return True

    def release(path: Path, descriptor: int) -> None:
        """Remove a file that is locked, and let go of it. What is open cannot be removed."""
        os.close(descriptor)
        with suppress(OSError):  # another process has it by now
            path.unlink()

else:
    import fcntl

    def take(descriptor: int, *, shared: bool = False) -> bool:
        """Lock an open file, alone or with others; False if somebody has it. OSError: its file system has no locks."""
        try:
            fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def release(path: Path, descriptor: int) -> None:
        """Remove a file that is locked, and let go of it: removed first, so that it is never another one's."""
        path.unlink(missing_ok=True)
        os.close(descriptor)
