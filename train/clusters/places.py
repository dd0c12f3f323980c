"""Paths of a machine, and the same places as its container sees them."""

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mconv.train.clusters.cluster import Cluster

PATHS = ("load", "save", "model", "data", "train_data", "valid_data", "test_data", "data_cache", "tensorboard_dir",
         "wandb_save_dir", "trigger_dir", "verify_against", "lora_load")  # fmt: skip
"""Fields of a run that hold paths; those of data may have a weight before each."""


@dataclass(frozen=True, slots=True)
class Places:
    """Where a job runs, on the machine and in the container; without one, the two are the same."""

    start: str
    """Folder that relative paths of the run begin at, as the ranks see it."""
    binds: tuple[tuple[str, str], ...] | None
    """Folders of the machine and where the container sees them; None without a container."""

    def inside(self, path: str) -> str:
        """Return a path of the run whole, as the ranks see it."""
        return os.path.normpath(os.path.join(self.start, path))  # noqa: PTH118 (of another machine)

    def host(self, path: str) -> str | None:
        """Return where a path of the run lies on the machine; None if no bind holds it."""
        whole = self.inside(path)
        return whole if self.binds is None else _moved(whole, ((there, here) for here, there in self.binds))

    def seen(self, folder: str) -> str | None:
        """Return where the container sees a folder of the machine; None if no bind holds it."""
        return folder if self.binds is None else _moved(folder, iter(self.binds))


def places_of(cluster: Cluster, folder: Path | None, *, mounted: str | None = None) -> Places:
    """Return the places of a job; the container sees `folder` too, where the job's own files lie.

    `mounted`: where pods see that folder, if the job runs in pods.
    """
    chdir = os.path.normpath(Path.cwd() / (cluster.chdir or ""))
    if mounted is None and cluster.container == "none":
        return Places(chdir, None)
    binds = tuple((os.path.normpath(Path(chdir) / one.split(":")[0]), one.split(":")[1]) for one in cluster.binds or [])
    if mounted is not None:
        return Places(cluster.workdir or "/", (*binds, *([(str(folder), mounted)] if folder else [])))
    found = Places(cluster.workdir or chdir, binds)
    if folder is None or found.seen(str(folder)):
        return found
    return Places(found.start, (*binds, (str(folder), str(folder))))


def here(values: Mapping[str, Any], places: Places) -> dict[str, Any]:
    """Return a run's fields with each path where this machine finds it, as far as a bind holds it."""
    found = dict(values)
    for name in PATHS:
        if isinstance(value := found.get(name), list):
            found[name] = [" ".join(_words(str(one), places)) for one in value]
        elif value is not None and not _is_name(name, str(value), places):
            found[name] = places.host(str(value)) or str(value)
    return found


def _words(entry: str, places: Places) -> Iterator[str]:
    """Yield the words of an entry of data, its path moved and a weight before it kept."""
    weight, space, path = entry.partition(" ")
    if not space or not weight.replace(".", "", 1).isdigit():
        weight, path = "", entry
    yield from filter(None, (weight, places.host(path) or path))


def _is_name(field: str, value: str, places: Places) -> bool:
    """Return whether a field holds the name of a repository, no path."""
    return field in ("load", "verify_against", "model") and not os.path.lexists(places.host(value) or value)


def _moved(path: str, pairs: Iterator[tuple[str, str]]) -> str | None:
    """Return a path below the second of the pair whose first holds it, the most exact of several."""
    holding = [pair for pair in pairs if path == pair[0] or path.startswith(pair[0].rstrip("/") + "/")]
    if not holding:
        return None
    first, second = max(holding, key=lambda pair: len(pair[0]))
    return os.path.normpath(second + "/" + path[len(first) :])
