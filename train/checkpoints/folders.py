"""A save folder: its iterations, and the tracker that names one of them. Every change is atomic."""

import os
import re
import shutil
import threading
from pathlib import Path

from mconv.convert.folders import manifest
from mconv.convert.folders.host import existing, writable
from mconv.convert.folders.kinds import TRACKER
from mconv.convert.folders.locate import tracker_word
from mconv.errors import ConfigError, MconvError
from mconv.train.config import TrainConfig


def latest(root: Path) -> int | None:
    """Return the iteration that a folder's tracker names; None without a tracker, or for a converted `release`."""
    word = tracker_word(root)
    return None if word in (None, "release") else int(word)


def folder_of(root: Path, iteration: int) -> Path:
    """Return the folder of an iteration's checkpoint."""
    return root / f"iter_{iteration:07d}"


def iterations(root: Path) -> list[int]:
    """Return the iterations that a folder holds, in order."""
    names = (path.name for path in root.glob("iter_*") if path.is_dir())
    return sorted(int(name.removeprefix("iter_")) for name in names if re.fullmatch(r"iter_\d{7,12}", name))


def ours(folder: Path) -> bool:
    """Return whether a run of mconv wrote the checkpoint."""
    try:
        steps = [step.get("step") for step in (manifest.read(folder) or {}).get("history", [])]
    except (MconvError, AttributeError):
        return False
    return steps[-1:] == ["train"]


# ---- changes ---------------------------------------------------------------------------------------------------------
def publish(partial: Path, folder: Path) -> None:
    """Flush the folder to disk and rename it; only then remove an older one of that name."""
    for path in (*partial.rglob("*"), partial):
        _flush(path)
    old = _hidden(folder)
    if folder.exists():
        folder.rename(old)
    partial.rename(folder)
    _flush(folder.parent)
    shutil.rmtree(old, ignore_errors=True)


def point(root: Path, iteration: int) -> None:
    """Set the tracker to this iteration, atomically."""
    move_tracker(root, pointer(root, iteration))


def pointer(root: Path, iteration: int) -> Path:
    """Write the next tracker to a hidden file and return it: before the checkpoint is renamed a full disk shows early."""
    hidden = root / f".{TRACKER}.part"
    try:
        hidden.write_text(f"{iteration}\n")
        _flush(hidden)
    except OSError:
        hidden.unlink(missing_ok=True)
        raise
    return hidden


def move_tracker(root: Path, hidden: Path) -> None:
    """Make a `pointer` file the tracker."""
    hidden.replace(root / TRACKER)
    _flush(root)


def remove(folder: Path) -> threading.Thread:
    """Remove a checkpoint in a thread; it is hidden first, so that a kill in the middle leaves no visible half."""
    old = _hidden(folder)
    folder.rename(old)
    going = threading.Thread(target=shutil.rmtree, args=(old,), kwargs={"ignore_errors": True})
    going.start()
    return going


def clear(root: Path) -> None:
    """Remove what killed saves and removals have left."""
    for left in leftovers(root):
        shutil.rmtree(left, ignore_errors=True)


def discard(root: Path, hidden: Path) -> None:
    """Remove the files of a save that failed."""
    shutil.rmtree(hidden, ignore_errors=True)
    (root / f".{TRACKER}.part").unlink(missing_ok=True)


def leftovers(root: Path) -> list[Path]:
    """Return the folders that `clear` removes."""
    return [*root.glob(".iter_*.partial"), *root.glob(".iter_*.old")]


def _hidden(folder: Path) -> Path:
    old = folder.with_name(f".{folder.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    return old


def _flush(path: Path) -> None:
    """Flush a file's bytes or a folder's names to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def check_folders(config: TrainConfig) -> None:
    """Refuse folders that cannot be made before the first step, not after the last; so also the model's own folder.

    Makes none of them: a run that is refused leaves nothing.
    """
    published = config.load and (Path(config.load) / "config.json").is_file()
    if published and config.save and not is_elsewhere(Path(str(config.load)), Path(config.save)):
        raise ConfigError(f"save is {config.save}, the Hugging Face folder that load names; give another folder")
    for name in ("save", "data_cache", "tensorboard_dir", "wandb_save_dir", "trigger_dir"):
        if (wanted := getattr(config, name)) and not writable(Path(wanted)):
            near = existing(Path(wanted))
            why = "cannot be written to" if near.is_dir() else "is a file"
            raise ConfigError(f"{name} is {wanted}, but {near} {why}; choose another folder")


def is_elsewhere(load: Path, save: Path) -> bool:
    """Return whether the folder that a run began with is still there, and is not its own."""
    return load.is_dir() and load.resolve() != save.resolve()
