"""Space and rights for a download, checked before its first byte; and a record of it until it is complete."""

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.filesize import decimal

from mconv.convert.folders.host import existing
from mconv.convert.folders.staging import PULL, PULLED
from mconv.convert.folders.unfinished import downloaded
from mconv.errors import MconvError


def check_writable(out: Path) -> None:
    """Raise MconvError if a folder cannot be made or written to."""
    above = existing(out)
    if not above.is_dir():
        raise MconvError(f"{above} is a file, so {out} cannot be made; give another folder")
    if not os.access(above, os.W_OK | os.X_OK):
        raise MconvError(f"{out} cannot be written: you have no right to write to {above}; give another folder")


def check(repo: str, sizes: Mapping[str, int], *, cache_dir: Path | None, local_dir: Path | None) -> None:
    """Raise MconvError if the disk has no room for the files still to come. `sizes`: bytes by name."""
    from huggingface_hub import constants

    place = local_dir or cache_dir or Path(constants.HF_HUB_CACHE)
    here = downloaded(place, sizes) if local_dir else _in_cache(place, repo)
    missing, free = max(0, sum(sizes.values()) - here), shutil.disk_usage(existing(place)).free
    if missing > free:
        raise MconvError(
            f"{repo}: {decimal(missing)} are still to be downloaded, but {place} has only {decimal(free)} free; "
            f"make room there, or {'give another folder' if local_dir else 'set HF_HOME to a folder on a larger disk'}"
        )


@contextmanager
def begun(folder: Path | None, record: Mapping[str, Any]) -> Iterator[None]:
    """Keep a record of a download in its folder until it is complete, so that an interrupted one is recognised.

    If an error comes before the first file, a folder that did not exist before is removed again.
    """
    if folder is None:
        yield
        return
    fresh, path = not folder.exists(), folder / PULL
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record), encoding="utf-8")
    try:
        yield
    except Exception:
        if fresh and not downloaded(folder, record["files"]):
            shutil.rmtree(folder, ignore_errors=True)
        raise
    path.replace(folder / PULLED)


def _in_cache(cache: Path, repo: str) -> int:
    """Return the bytes of a repository that the Hub's cache has."""
    blobs = (cache / f"models--{repo.replace('/', '--')}" / "blobs").glob("*")
    return sum(path.stat().st_size for path in blobs if path.is_file())
