"""Leftovers of killed commands (a conversion, a training run's save, a download), and how to complete them.

Read are the journal beside a conversion and the list that a download keeps, never a tensor.
"""

import json
import os
import re
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mconv.convert.folders import lock
from mconv.convert.folders.kinds import TRACKER
from mconv.convert.folders.staging import MANIFEST, PARTIAL, PLAN, PULL, Staging

_OLD = "old-"
_JOURNAL = ".journal"
_SAVE = re.compile(r"\.iter_(\d{1,12})\.[0-9a-f]+\.partial")
"""The name of a folder in which a training run is writing a checkpoint."""
AGAIN = "the same command with --resume completes it"


@dataclass(frozen=True, slots=True, kw_only=True)
class Unfinished:
    """Something that a command has begun and not ended."""

    text: str
    """The leftover in words: a noun phrase with an article."""
    advice: str
    """Advice to the user."""


def at(path: Path) -> Unfinished | None:
    """Return what is unfinished about a path by its own name: a staging folder, an output to be, a download."""
    name = path.name
    if name.startswith(PARTIAL):
        return _staged(path)
    if save := _SAVE.fullmatch(name):
        return _save(path.parent, int(save[1]), staging=True)
    if (path / PULL).is_file():
        return _download(path)
    return None if path.exists() or not name else _conversion(Staging.of(path))


def within(folder: Path, name: str | None = None) -> Unfinished | None:
    """Return the unfinished conversion (or else save) in a folder that is no checkpoint, or None.

    `name`: the conversion's output, where one is asked for.
    """
    stagings = [Staging.of(folder / one) for one in ([name] if name else staged(folder))]
    for staging in sorted(stagings, key=lambda one: one.journal.is_dir(), reverse=True):
        if found := _conversion(staging):
            return found
    if name:
        return None
    saves = [int(match[1]) for path in _glob(folder, ".iter_*.partial") if (match := _SAVE.fullmatch(path.name))]
    return _save(folder, max(saves), staging=False) if saves else None


def staged(folder: Path) -> list[str]:
    """Return the names of the folders that conversions have begun to write in a folder."""
    names = {path.name.removeprefix(PARTIAL).removesuffix(_JOURNAL) for path in _glob(folder, f"{PARTIAL}*")
             if path.is_dir()}  # fmt: skip
    return sorted(name for name in names if not name.startswith(_OLD))


def _glob(folder: Path, pattern: str) -> list[Path]:
    try:
        return sorted(folder.glob(pattern))
    except OSError:
        return []


# ---- conversions -----------------------------------------------------------------------------------------------------
def _staged(path: Path) -> Unfinished | None:
    """Return what a staging folder, or the journal beside it, is part of."""
    name = path.name.removeprefix(PARTIAL).removesuffix(_JOURNAL)
    if name.startswith(_OLD) or (path / MANIFEST).is_file():  # what was there before; or written to its last byte
        return None
    found = _conversion(Staging.of(path.parent / name))
    return found and Unfinished(text=f"the staging folder of {path.parent / name}, {found.text}", advice=found.advice)


def _conversion(staging: Staging) -> Unfinished | None:
    """Return what is known of a conversion that was begun at a place."""
    if not (staging.partial.is_dir() or staging.unfinished):
        return None
    begun = _read(staging.journal / PLAN)
    what = _plain(str(begun.get("what", "conversion")))
    about = ", ".join(part for part in (_made_by(begun), _written(staging, begun)) if part)
    shown = f" ({about})" if about else ""
    if _is_locked(staging):
        return Unfinished(text=f"a {what} that another mconv is writing now{shown}", advice="wait for it to end")
    if staging.unfinished and begun:
        return Unfinished(text=f"an unfinished {what}{shown}", advice=AGAIN)
    return Unfinished(
        text="an unfinished conversion, too short to be continued", advice="the command that made it starts it anew"
    )


def _made_by(begun: dict[str, Any]) -> str:
    """Return the command that began a conversion, or else its step."""
    command, of = begun.get("command"), begun.get("of")
    options = of.get("options") if isinstance(of, dict) else None
    step = options.get("step") if isinstance(options, dict) else None
    known = command if isinstance(command, str) and command else isinstance(step, str) and f"mconv {step} ..."
    return f"made by `{_plain(known)}`" if known else ""


def _written(staging: Staging, begun: dict[str, Any]) -> str:
    """Return how much of a conversion is written, as far as its journal tells."""
    if staging.published:
        return "all written, but nothing points to it yet"
    sizes = begun.get("sizes")
    sizes = {k: v for k, v in sizes.items() if isinstance(v, int)} if isinstance(sizes, dict) else {}
    done = {name for path in _glob(staging.journal, "done-*.jsonl") for name in _names(path)}
    return _percent(sum(size for name, size in sizes.items() if name in done), sum(sizes.values()), "written")


def _names(journal: Path) -> set[str]:
    """Return the tensors that a journal says are written. A line that was cut short says nothing."""
    names = set()
    for line in journal.read_text(encoding="utf-8", errors="replace").splitlines():
        with suppress(ValueError, AttributeError):
            names.add(str(json.loads(line).get("logical")))
    return names


def _is_locked(staging: Staging) -> bool:
    """Return whether a living process is writing at a place."""
    try:
        descriptor = os.open(staging.partial.with_name(f"{staging.partial.name}.lock"), os.O_RDONLY)
    except OSError:
        return False
    try:
        return not lock.take(descriptor, shared=True)
    except OSError:  # a file system without locks
        return False
    finally:
        os.close(descriptor)


# ---- saves and downloads ---------------------------------------------------------------------------------------------
def _save(root: Path, iteration: int, *, staging: bool) -> Unfinished:
    """Return what to say of a checkpoint that a training run was writing."""
    whole = (root / TRACKER).is_file()
    what = "the staging folder of iteration %d of a training run" if staging else "a training run's folder: iteration %d"
    advice = (
        f"give {root} for its last whole checkpoint" if whole else "it holds no whole checkpoint: start the run again"
    )
    return Unfinished(text=f"{what % iteration}, whose save was not finished, or is under way", advice=advice)


def _download(folder: Path) -> Unfinished:
    """Return what is known of a download that was not finished."""
    begun = _read(folder / PULL)
    repo, sizes = _plain(str(begun.get("repo", "?"))), begun.get("files")
    sizes = {k: v for k, v in sizes.items() if isinstance(v, int)} if isinstance(sizes, dict) else {}
    percent = _percent(downloaded(folder, sizes), sum(sizes.values()), "there")
    shown = f" ({percent})" if percent else ""
    branch = f" --revision {_plain(str(begun['revision']))}" if begun.get("revision") else ""
    return Unfinished(
        text=f"an unfinished download of {repo}{shown}", advice=f"`mconv pull {repo} {folder}{branch}` completes it"
    )


def downloaded(folder: Path, names: Iterable[str]) -> int:
    """Return the bytes that a download of these files has left in its folder, those of unfinished files included."""
    paths = [*(folder / name for name in names), *(folder / PULL).parent.rglob("*.incomplete")]
    return sum(path.stat().st_size for path in paths if path.is_file())


# ---- shared ----------------------------------------------------------------------------------------------------------
def _percent(part: int, whole: int, word: str) -> str:
    """Return a share in percent, rounded down: what is unfinished is never at 100."""
    return f"{min(99, 100 * part // whole)} % {word}" if whole > 0 else ""


def _read(path: Path) -> dict[str, Any]:
    """Return a JSON object; {} where there is none to read."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _plain(text: str) -> str:
    """Return text from a file so that a terminal does nothing but show it."""
    return "".join(c if c.isprintable() else "?" for c in text)[:300]
