"""Recognition of a path by the names in it: for messages, and for commands that take several kinds.

Nothing is opened but the journal of what a killed command has left (`unfinished.py`).

The table is in `kinds.py`: the names that give a kind away, what it is, and what to do with it.
"""

import difflib
import fnmatch
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from mconv.convert.folders import unfinished
from mconv.convert.folders.kinds import AROUND, FILES, FOLDERS, PLAIN, READABLE, WANTED, Row

MOST = 5000
"""Names of a folder that are looked at."""
BELOW = 50
"""Folders below it that are looked into."""
DEEP = 3
"""Levels below it that are looked at."""
NAMED = (*READABLE, "adapter", "root")
"""Kinds of folders below that are worth a word."""
PERHAPS_UNFINISHED = ("unfinished", "root", "run")
"""Kinds of folders that look so because a command was killed."""
SHOWN = 6
"""Names that a message shows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class What:
    """A path's kind, and advice on it."""

    kind: str
    """A short name: "hf", "meta", "mistral", "adapter", "megatron", ...; "unknown", "empty", "absent"."""
    text: str
    """The kind in words: a noun phrase with an article."""
    advice: str
    """Advice to the user; "" where mconv opens it as it is."""
    readable: bool
    """True where `open_checkpoint` takes it, if nothing in it is damaged."""


def what_is(path: Path | str) -> What:
    """Return what a path is, by names alone. Never raises: an unreadable folder is "unknown"."""
    path = Path(path)
    try:
        if found := unfinished.at(path):
            return _unfinished(found)
        return _folder(path) if path.is_dir() else _file(path) if path.exists() else _absent(path)
    except OSError as error:
        return What(kind="unknown", text=f"not readable ({error.strerror or error})", advice="", readable=False)


def explain(path: Path | str) -> str:
    """Return the whole message about a path that mconv does not open: what it is and what to do."""
    path, found = Path(path), what_is(path)
    seen = shown(names_in(path)) if path.is_dir() and found.kind not in PLAIN else ""
    parts = [f"{path} is {found.text}" + (f" (it holds {seen})" if seen else ""), found.advice]
    return "; ".join(part for part in parts if part)


def names_in(folder: Path, *, most: int = MOST) -> list[str]:
    """Return the sorted names in a folder, those of folders with a slash at the end; at most `most`."""
    with os.scandir(folder) as entries:
        return sorted(entry.name + "/" * entry.is_dir() for entry in islice(entries, most))


def _folder(path: Path) -> What:
    names = names_in(path)
    if not names:
        return What(kind="empty", text="an empty folder", advice="give the folder of a model", readable=False)
    row = _row(names)
    inside = _inside(path, names) if row is None or row.kind not in READABLE else []
    if beside := _beside(path, row):
        return beside
    begun = unfinished.within(path) if row is None or row.kind in PERHAPS_UNFINISHED else None
    if begun and all(below.name in unfinished.staged(path) for below, _, _ in inside):
        return _unfinished(begun)
    if inside and (row is None or row.kind in AROUND or (row.kind == "root" and inside[0][2] in ("hf", "adapter"))):
        (folder, text, _), *others = inside
        also = f" (or {shown([below.name for below, _, _ in others], most=3)} beside it)" if others else ""
        return What(kind="parent", text=f"not a model itself: {folder} is {text}", advice=f"give {folder}{also}",
                    readable=False)  # fmt: skip
    if row is None:
        return _unknown([name for name in names if not name.startswith(".cache")])
    return _what(row, path, iterations=iterations(path, names))


def _unfinished(found: unfinished.Unfinished) -> What:
    return What(kind="unfinished", text=found.text, advice=found.advice, readable=False)


def _unknown(names: Sequence[str]) -> What:
    wanted = "; ".join(f"{name}: {files}" for name, files in WANTED)
    return What(kind="unknown", text=f"no checkpoint that mconv knows: it holds {shown(names)}",
                advice=f"what each format would need: {wanted}", readable=False)  # fmt: skip


def _beside(path: Path, row: Row | None) -> What | None:
    """Return the answer for a folder of config and tokenizer that belongs to the checkpoint one folder up, or None."""
    if row is None or row.kind not in ("config-only", "tokenizer") or path.name not in ("hf", "tokenizer"):
        return None
    above = path.resolve().parent
    outer = _row(names_in(above))
    if outer is None or outer.kind not in READABLE:
        return None
    return What(kind="side", text=f"the config and tokenizer that travel with the checkpoint {path.parent}",
                advice=f"give {path.parent}", readable=False)  # fmt: skip


def _inside(path: Path, names: Sequence[str]) -> list[tuple[Path, str, str]]:
    """Return (folder, text, kind) of each folder below that mconv opens, or of adapters; numbered ones last first.

    Where the next level has none, the ones below it are looked at too: archives are unpacked into folders of their own.
    """
    level = [path / name for name in names if name.endswith("/") and not name.startswith(".")][:BELOW]
    for _ in range(DEEP):
        rows = [(folder, inner, _row(inner)) for folder, inner in _read(level)]
        found = [(folder, row.text.partition(":")[0], row.kind) for folder, _, row in rows if row and row.kind in NAMED]
        if found:
            return sorted(found, key=lambda one: [-int(n) for n in re.findall(r"\d{1,18}", one[0].name)])
        below = (folder / name for folder, inner, _ in rows for name in inner if name.endswith("/") and name[0] != ".")
        level = list(islice(below, BELOW))
    return []


def _row(names: Sequence[str]) -> Row | None:
    """Return the row of the table that these names fit, or None."""
    return next((row for row in FOLDERS if _fits(row, names)), None)


def _read(folders: Sequence[Path]) -> Iterator[tuple[Path, list[str]]]:
    """Yield folders and the names in them; one that cannot be read is left out."""
    for folder in folders:
        with suppress(OSError):
            yield folder, names_in(folder, most=500)


def iterations(path: Path, names: Sequence[str]) -> str:
    """Return what to type for a root whose tracker names none of its iterations."""
    numbers = sorted(int(n[5:-1]) for n in names if re.fullmatch(r"iter_\d{1,12}/", n))
    told = []
    if numbers:
        have = ", ".join(map(str, numbers[-SHOWN:]))
        more = f" (and {len(numbers) - SHOWN} earlier)" if len(numbers) > SHOWN else ""
        told.append(f"it has the iterations {have}{more}: say which with --iteration {numbers[-1]}")
    if "release/" in names:
        told.append(f"{'or ' if told else ''}give {path / 'release'}")
    return ", ".join(told)


def _file(path: Path) -> What:
    if path.suffix == ".bin" and path.with_suffix(".idx").is_file():
        return _token_data("the tokens of token data, not a model", path.with_suffix(""))
    row = next((row for row in FILES if _fits(row, [path.name])), None)
    if row is None:
        return What(kind="file", text="a file that is no model, no checkpoint and no token data",
                    advice="give the folder of a model, or the prefix of token data", readable=False)  # fmt: skip
    return _what(row, path)


def _token_data(text: str, prefix: Path) -> What:
    return What(kind="data", text=text, advice=f"it is for `mconv train --data {prefix}`", readable=False)


def _absent(path: Path) -> What:
    """Return the answer for a path that does not exist: a prefix of data, a misspelt neighbour, or a repository."""
    above = path.parent
    near: list[str] = []
    if above.is_dir():
        if (above / f"{path.name}.bin").is_file() and (above / f"{path.name}.idx").is_file():
            return _token_data("a prefix of token data, not a model", path)
        pair = [f"{path.name}.bin", f"{path.name}.idx"]
        have = [name for name in pair if (above / name).is_file()]
        if len(have) == 1:
            lacks = next(name for name in pair if name not in have)
            return What(kind="data", text=f"a prefix of token data of which {have[0]} is there and {lacks} is not",
                        advice="copy the other file too, or make both again", readable=False)  # fmt: skip
        there = [name.rstrip("/") for name in names_in(above) if name.endswith("/") and not name.startswith(".")]
        near = difflib.get_close_matches(path.name, there, n=2, cutoff=0.75)
    advice = "give a Hugging Face folder or a Megatron checkpoint"
    if near:
        advice = f"did you mean {' or '.join(str(above / name) for name in near)}?"
    elif len(path.parts) == 2 and not path.is_absolute():
        advice += f" (mconv pull {path} fetches one of the Hub's)"
    return What(kind="absent", text="not a folder", advice=advice, readable=False)


def _what(row: Row, path: Path, **more: str) -> What:
    # one dot is no name of a folder: a bare file name has it for its parent
    places = {"path": str(path), "parent": str(path.parent), "grandparent": str(path.parent.parent), **more}
    advice = re.sub(r"\{(\w+)\}", lambda m: places.get(m[1], ""), row.advice)
    return What(kind=row.kind, text=row.text, advice=advice, readable=row.kind in READABLE)


def _fits(row: Row, names: Sequence[str]) -> bool:
    return all(_any(sign, names) for sign in row.signs) and not (row.but and _any(row.but, names))


def _any(sign: str, names: Sequence[str]) -> bool:
    """Return whether a name fits one of the alternatives; only folders have a slash at the end."""
    return any(fnmatch.fnmatchcase(name, one) for one in sign.split("|") for name in _of(one, names))


def _of(pattern: str, names: Sequence[str]) -> Iterator[str]:
    return (name for name in names if name.endswith("/") == pattern.endswith("/"))


def shown(names: Sequence[str], *, most: int = SHOWN) -> str:
    """Return the first of some names, safe to print, and how many more there are."""
    told = ", ".join(name if name.isprintable() else ascii(name) for name in names[:most])
    return told + (f" and {len(names) - most} more" if len(names) > most else "")
