"""Files that appear under their names when they are complete."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from mconv.convert.folders.staging import sync
from mconv.errors import MconvError


@contextmanager
def appearing(outputs: Sequence[Path], *, overwrite: bool, maybe: Path | None = None) -> Iterator[list[Path]]:
    """Yield paths to write to; when all is written, and only then, the files get the names of `outputs`.

    The last path is that of `maybe`, a file that need not be written; an old one of its name goes all the same.
    """
    names = [*outputs, *([maybe] if maybe else [])]
    if (there := [str(path) for path in names if path.exists()]) and not overwrite:
        raise MconvError(f"{', '.join(there[:5])}: already there; pass --overwrite, or another --out")
    parts = [path.with_name(f".{path.name}.part") for path in names]
    new = _make({path.parent for path in names})
    try:
        yield parts
        written = [(part, path) for part, path in zip(parts, names, strict=True) if path != maybe or part.exists()]
        for part, _ in written:
            sync(part)
        for path in reversed(names):  # a kill from here on leaves less than a whole, and never old beside new
            path.unlink(missing_ok=True)
        for part, path in sorted(written, key=lambda pair: pair[1] != maybe):
            part.replace(path)
    finally:
        for part in parts:
            part.unlink(missing_ok=True)
        for folder in new:
            with suppress(OSError):  # it has files now
                folder.rmdir()


def _make(folders: Iterable[Path]) -> list[Path]:
    """Make folders and those around them; returns the new ones, the innermost first."""
    new = {folder for path in folders for folder in (path, *path.parents) if not folder.exists()}
    for folder in sorted(new):
        folder.mkdir(exist_ok=True)
    return sorted(new, reverse=True)
