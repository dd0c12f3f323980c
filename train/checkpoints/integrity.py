"""Verify the checksums of a checkpoint before a run resumes from it: torch's loader does not."""

from pathlib import Path

import torch

from mconv.convert.formats import archive, torch_dist
from mconv.errors import FormatError
from mconv.train.megatron.collectives import from_all_ranks


def check(folder: Path) -> None:
    """Compare a torch_dist folder with its checksums: each rank reads a share. Raises FormatError on all of them."""
    rank, world = torch.distributed.get_rank(), torch.distributed.get_world_size()
    parts = _parts(folder)
    begin, end = (len(parts) * number // world for number in (rank, rank + 1))
    if bad := [found for found in from_all_ranks(_damage(parts[begin:end])) if found]:
        raise FormatError(f"{bad[0]}; resume from an earlier checkpoint (--iteration N)")


def _parts(folder: Path) -> list[tuple[Path, int, int | None]]:
    """Return every archive of a checkpoint as (file, start, length), sorted so that each file is read in order."""
    weights, _ = torch_dist.open_folder(folder)
    training, blobs = torch_dist.open_training(folder)
    chunks = [*blobs.values(), *(c for tensor in (*weights.values(), *training.values()) for c in tensor.chunks)]
    parts: list[tuple[Path, int, int | None]] = sorted({(c.path, c.start, c.length) for c in chunks})
    common = folder / torch_dist.COMMON
    return [(common, 0, None), *parts] if common.is_file() else parts


def _damage(parts: list[tuple[Path, int, int | None]]) -> str | None:
    try:
        for path, start, length in parts:
            archive.check(path, start=start, length=length)
    except (FormatError, OSError) as error:
        return str(error)
    return None
