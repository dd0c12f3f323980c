"""The staging directory of a conversion, beside the folder that it will become: its files, its journal, its lock."""

import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from mconv.convert.folders import lock
from mconv.convert.folders.kinds import TRACKER
from mconv.errors import MconvError

PARTIAL = ".mconv-partial-"
"""The prefix of unfinished folders, which nothing reads. The next run replaces or continues them."""
PLAN = "plan.json"
"""The journal's file that says what is converted to what."""
MANIFEST = "mconv.json"
PULL = Path(".cache", "huggingface", "mconv-pull.json")
"""The record of an unfinished download, within its folder."""
PULLED = PULL.with_name("mconv-pulled.json")
"""The record of a finished download: the repository that the folder came from."""
WINDOWS = sys.platform == "win32"


def has_saved(root: str | Path | None) -> bool:
    """Return whether a folder holds a run, or a model, to which its tracker points."""
    return bool(root) and (Path(str(root)) / TRACKER).is_file()


@dataclass(frozen=True, slots=True)
class Staging:
    """The staging directory of a conversion and the journal beside it."""

    folder: Path
    """The folder that the conversion makes."""
    partial: Path
    journal: Path

    @classmethod
    def of(cls, folder: Path) -> "Staging":
        partial = folder.parent / f"{PARTIAL}{folder.name}"
        return cls(folder, partial, folder.parent / f"{partial.name}.journal")

    @property
    def old(self) -> Path:
        """The place of the former output while the new one is moved in."""
        return self.folder.parent / f"{PARTIAL}old-{self.folder.name}"

    @property
    def published(self) -> bool:
        """True where the result is in its place already."""
        pair = (self.folder / MANIFEST, self.journal / MANIFEST)
        if self.partial.exists() or not all(path.is_file() for path in pair):
            return False
        return pair[0].read_bytes() == pair[1].read_bytes()

    @property
    def unfinished(self) -> bool:
        """True where a conversion was begun here and not ended."""
        return (self.journal / PLAN).is_file() and (self.partial.is_dir() or self.published)

    @property
    def nbytes(self) -> int:
        """The bytes that the unfinished files take on the disk."""
        files = [path.stat() for path in self.partial.rglob("*") if path.is_file()]
        return sum(getattr(status, "st_blocks", 0) * 512 for status in files)

    def swap(self) -> None:
        """Move what was made to its place; what was there before is put aside as `old`, and back if that fails."""
        remove(self.old)
        if self.folder.exists():
            self.folder.rename(self.old)
        try:
            self.partial.rename(self.folder)
        except BaseException:
            if self.old.exists():
                self.old.rename(self.folder)
            raise
        sync(self.folder.parent)

    def clear(self) -> None:
        """Remove what is unfinished. The journal goes first: it must never vouch for other bytes."""
        shutil.rmtree(self.journal, ignore_errors=True)
        shutil.rmtree(self.partial, ignore_errors=True)

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Keep others from making the same folder. Raises MconvError if one does; a killed one's lock is gone with it."""
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        path = self.folder.parent / f"{self.partial.name}.lock"
        descriptor = _locked(path)
        if descriptor is None:
            raise MconvError(f"another mconv is writing {self.folder} now; wait for it, or name another folder")
        try:
            yield
        finally:
            lock.release(path, descriptor)


def _locked(path: Path) -> int | None:
    """Return a descriptor that holds the lock of a file, or None if another process has it."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            if not lock.take(descriptor):
                os.close(descriptor)
                return None
        except OSError:  # a file system without locks: then there is nothing to go by
            return descriptor
        with suppress(FileNotFoundError):
            if os.path.samestat(path.stat(), os.fstat(descriptor)):
                return descriptor
        os.close(descriptor)  # its holder has just removed it: another one counts now


def remove(path: Path) -> None:
    """Remove a folder, or a link to one."""
    if path.is_symlink():
        path.unlink(missing_ok=True)
    else:
        shutil.rmtree(path, ignore_errors=True)


def write_whole(path: Path, content: str | bytes, *, durable: bool = True, at_once: bool = False) -> None:
    """Write a small file under a hidden name and rename it: readers, and a kill, find it whole or as it was before.

    `durable`: the disk holds the content before the rename, so that a power cut changes nothing of this.
    `at_once`: several processes may write it at one time. Else what a kill leaves is overwritten by the next writer.
    """
    partial = path.with_name(f"{PARTIAL}{path.name}" + f".{os.getpid()}" * at_once)
    try:
        partial.write_bytes(content.encode() if isinstance(content, str) else content)
        if durable:
            sync(partial)
        partial.replace(path)
    except BaseException:
        with suppress(OSError):
            partial.unlink()
        raise


def flush(folder: Path) -> None:
    """Have the disk hold every file of a folder."""
    for path in folder.rglob("*"):
        sync(path)
    sync(folder)


def sync(path: Path, *, data_only: bool = False) -> None:
    """Have the disk hold what was written. Windows opens no folders, and syncs no file that is open for reading."""
    if WINDOWS and path.is_dir():
        return
    descriptor = os.open(path, os.O_RDWR if WINDOWS else os.O_RDONLY)
    try:
        (os.fdatasync if data_only and hasattr(os, "fdatasync") else os.fsync)(descriptor)
    finally:
        os.close(descriptor)
