"""The checkpoints, runs and adapters in a working folder, by their manifests and trackers alone.

Nothing heavy is imported and no tensor is looked at, so this is quick. What cannot be read is named in `Scan.notes`.
"""

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from mconv.convert.folders import manifest, unfinished
from mconv.convert.folders.kinds import TRACKER
from mconv.convert.folders.staging import PULL
from mconv.convert.folders.unfinished import Unfinished
from mconv.convert.formats.jsonfile import read_json
from mconv.errors import FormatError, MconvError

ADAPTER = "adapter_config.json"
Kind = Literal["hf", "megatron", "adapter"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """A checkpoint, a run (by the iteration that its tracker names) or an adapter."""

    path: Path
    """The path that a user types: a model folder, or a Megatron root."""
    folder: Path
    """The folder that holds the tensors."""
    kind: Kind
    manifest: dict[str, Any] | None = None
    """None: mconv did not make it."""
    iterations: tuple[int, ...] = ()
    """All iterations of a Megatron root, in order."""

    @property
    def made(self) -> str | None:
        """The UTC time at which it was made, or None where its manifest is older than this field."""
        return (self.manifest or {}).get("made")

    @property
    def steps(self) -> list[dict[str, Any]]:
        """The steps that led to it, the earliest first."""
        return [step for step in (self.manifest or {}).get("history", []) if isinstance(step, dict)]

    @property
    def step(self) -> str | None:
        """The step that made it."""
        return str(self.steps[-1].get("step")) if self.steps else None

    @property
    def trained(self) -> bool:
        """True for a run's own folder."""
        return self.step == "train"

    @property
    def holds_adapter(self) -> bool:
        """True where the weights are an adapter's, not a model's: a LoRA run, or a PEFT folder."""
        return self.kind == "adapter" or "adapter" in (self.manifest or {})

    @property
    def iteration(self) -> int | None:
        """The iteration that `folder` is of."""
        found = re.fullmatch(r"iter_(\d{1,12})", self.folder.name)
        return int(found[1]) if found and self.kind == "megatron" else None

    @property
    def ancestors(self) -> list[Path]:
        """The folders of everything that it was made from, earliest first, whether or not they still exist."""
        made = self.manifest or {}
        known = made.get("ancestors") or [*made.get("merged_from", {}).values(), *made.get("made_from", [])]
        return [_plain(self.folder, path) for path in known]

    @property
    def parents(self) -> list[Path]:
        """The inputs of the last step: one checkpoint, or the base and the adapters of a merge."""
        made = self.manifest or {}
        if self.step == "lora merge" and (merged := made.get("merged_from")):
            return [_plain(self.folder, path) for path in merged.values()]
        if self.step == "blend":
            return [_plain(self.folder, path) for path in made.get("merged_from", {}).values()]
        return self.ancestors[-1:]


@dataclass(frozen=True, slots=True, kw_only=True)
class Scan:
    """The checkpoints, runs and adapters of a folder."""

    folder: Path
    found: tuple[Found, ...]
    notes: tuple[str, ...] = ()
    """A line for each thing that looks like a checkpoint and cannot be read."""
    by_place: dict[Path, Found] = field(init=False, repr=False, compare=False)
    """Each by the resolved paths of its root and of the folder that holds its tensors."""

    def __post_init__(self) -> None:
        places = {place.resolve(): one for one in self.found for place in (one.path, one.folder)}
        object.__setattr__(self, "by_place", places)

    def at(self, place: Path) -> Found | None:
        """Return the checkpoint at a place, which may be an iteration that the tracker does not name."""
        return self.by_place.get(place) or self.by_place.get(place.parent)

    def holds(self, place: Path) -> Found | None:
        """Return the checkpoint whose current tensors are at a place; None for an iteration that the tracker has left."""
        return self.by_place.get(place)

    def descendants(self, one: Found) -> list[Found]:
        """Return what was made from `one` as it is now, directly or not: nothing that is older than `one`."""
        return [other for other in self.found if other is not one and one in self._sources(other)]

    def _sources(self, one: Found) -> list[Found]:
        known = (self.holds(place) for place in one.ancestors)
        return [source for source in known if source and source is not one and not _later(source, one)]


def _later(one: Found, other: Found) -> bool:
    """Return whether `one` is known to be made after `other`."""
    return one.made is not None and other.made is not None and one.made > other.made


def _plain(folder: Path, path: str) -> Path:
    """Return a manifest's path, resolved as far as it can be."""
    try:
        return (folder.resolve() / path).resolve()
    except (OSError, ValueError, RuntimeError):
        return Path(os.path.normpath(folder.absolute() / path.replace("\0", "?")))


# ---- look ------------------------------------------------------------------------------------------------------------
def scan(folder: Path) -> Scan:
    """Return what lies in `folder`: its own entries, and those of folders of exported iterations. Follows links once."""
    found: dict[Path, Found] = {}
    notes: list[str] = []
    for path in _entries(folder):
        for where in (path, *_exports(path)):
            try:
                one = look(where)
                place = where.resolve()
            except (MconvError, OSError, RuntimeError) as error:
                notes.append(f"passed over: {_one_line(error)}")
                continue
            # a link to what is here under its own name is no second checkpoint
            if one and (place not in found or not where.is_symlink()):
                found[place] = one
    return Scan(folder=folder, found=tuple(sorted(found.values(), key=lambda one: one.path)), notes=tuple(notes))


def _entries(folder: Path) -> list[Path]:
    """Return the folders in a folder, without hidden ones (unfinished outputs are hidden)."""
    try:
        names = sorted(entry.name for entry in os.scandir(folder) if not entry.name.startswith("."))
    except OSError as error:
        raise MconvError(f"{folder}: {error.strerror or error}") from error
    return [path for path in (folder / name for name in names) if path.is_dir()]


def _exports(path: Path) -> Iterator[Path]:
    """Yield the iterations that `meg2hf --iterations` exported into one folder."""
    try:
        if (path / TRACKER).is_file():
            return
        inside = sorted(one for one in path.glob("iter_*") if (one / "config.json").is_file())
    except OSError:
        return
    yield from inside


def look(path: Path) -> Found | None:
    """Return what a folder is, or None if it is no checkpoint. Raises MconvError where it is a damaged one."""
    if (path / PULL).is_file():  # not downloaded to its end
        return None
    if (path / "config.json").is_file():
        return Found(path=path, folder=path, kind="hf", manifest=manifest.read(path)) if _is_model(path) else None
    if (path / ADAPTER).is_file():
        return Found(path=path, folder=path, kind="adapter", manifest=manifest.read(path))
    if (path / TRACKER).is_file():
        folder = _tracked(path)
    elif (path / "metadata.json").is_file() or any(path.glob("mp_rank_*")):
        folder = path
    else:
        return None
    return Found(
        path=path, folder=folder, kind="megatron", manifest=manifest.read(folder), iterations=tuple(_iterations(path))
    )


def _is_model(path: Path) -> bool:
    """Return whether a config.json is a language model's: other programs have files of that name too."""
    weights = any(path.glob("*.safetensors")) or any(path.glob("*.bin"))
    if (path / manifest.NAME).is_file() or not weights:
        return (path / manifest.NAME).is_file()
    return isinstance(read_json(path / "config.json").get("model_type"), str)


def _tracked(root: Path) -> Path:
    """Return the folder that a root's tracker names."""
    word = (root / TRACKER).read_text(encoding="utf-8", errors="replace").strip()
    if word != "release" and not re.fullmatch(r"\d{1,12}", word):
        raise FormatError(f"{root / TRACKER} says {word[:40]!r}; it must be an iteration number or 'release'")
    folder = root / ("release" if word == "release" else f"iter_{int(word):07d}")
    if not folder.is_dir():
        raise FormatError(f"{root / TRACKER} says {word!r}, but {folder} does not exist")
    return folder


def _iterations(root: Path) -> list[int]:
    return sorted(int(p.name[5:]) for p in root.glob("iter_*") if re.fullmatch(r"iter_\d{1,12}", p.name) and p.is_dir())


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]


def unfinished_in(folder: Path) -> dict[str, Unfinished]:
    """Return what killed commands have left in a folder and in the Megatron roots in it, by the name of the output."""
    found = {name: unfinished.within(folder, name) for name in unfinished.staged(folder)}
    for path in _entries(folder):
        if (path / TRACKER).is_file():
            found |= {f"{path.name}/{name}": unfinished.within(path, name) for name in unfinished.staged(path)}
        else:
            found[path.name] = unfinished.at(path) or unfinished.within(path)
    return {name: one for name, one in sorted(found.items()) if one}


# ---- in words --------------------------------------------------------------------------------------------------------
def described(one: Found) -> str:
    """Return a line on what one is, for lists to choose from."""
    return f"{one.path}: {origin(one)}"


def origin(one: Found) -> str:
    """Return the step that made it, what it was made from, and when."""
    of = " and ".join(map(called, one.parents))
    step = f"made by {one.step}" + (f" from {of}" if of else "") if one.step else "not made by mconv"
    return shown(", ".join(filter(None, (layout_of(one), step, one.made))))


def layout_of(one: Found) -> str:
    """Return format, layout and iteration in words, as far as the manifest knows them."""
    made = one.manifest or {}
    layout, iteration = made.get("layout"), "" if one.iteration is None else f", iteration {one.iteration}"
    if one.kind != "megatron":
        return "a PEFT adapter" if one.kind == "adapter" else "hf"
    sizes = f" tp {layout.get('tp')} x pp {layout.get('pp')}" if isinstance(layout, dict) else ""
    return f"{made.get('format', 'megatron')}{sizes}{iteration}{', a LoRA adapter' * one.holds_adapter}"


def called(place: Path) -> str:
    """Return what to call what lies at a place: a release by its root, an iteration with its root."""
    if re.fullmatch(r"iter_\d+", place.name):
        return f"{place.parent.name}/{place.name}"
    return place.parent.name if place.name == "release" else place.name


def shown(text: str) -> str:
    """Return text that came from a file so that a terminal does nothing but show it."""
    return "".join(c if c.isprintable() else "?" for c in text)
