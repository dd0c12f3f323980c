"""The iterations of a Megatron root, one after another: which there are, and which were exported already."""

import re
from pathlib import Path

from mconv.convert.checkpoint.open import open_checkpoint
from mconv.convert.engine.plan import SHARD_BYTES
from mconv.convert.folders import manifest
from mconv.convert.folders.ignored import NOTHING, Ignored
from mconv.convert.folders.recognize import what_is
from mconv.errors import FormatError, MconvError


def wanted(root: Path, word: str) -> list[int]:
    """`all`, or numbers with commas: the iterations of `root` that are meant, in order."""
    have = sorted(int(p.name.removeprefix("iter_")) for p in root.glob("iter_*") if re.fullmatch(r"iter_\d+", p.name))
    if not have:
        raise FormatError(f"{root} has no iterations (iter_*): it is {what_is(root).text}; give a Megatron root")
    if word == "all":
        return have
    if not re.fullmatch(r"\d{1,12}(,\d{1,12})*", word):
        raise MconvError(f"--iterations {word!r}: `all`, or numbers with commas between (100,200) were expected")
    asked = sorted({int(n) for n in word.split(",")})
    if absent := [n for n in asked if n not in have]:
        raise FormatError(f"{root} has no iteration {', '.join(map(str, absent))}; it has {', '.join(map(str, have))}")
    return asked


def mark(
    folder: Path, *, dtype: str | None = None, shard_bytes: int = SHARD_BYTES, side_folder: Path | None = None,
    vocab_size: int | None = None, dialect: str | None = None, config: Path | None = None, ignore: Ignored = NOTHING,
) -> str:  # fmt: skip
    """The fingerprint of an iteration's folder and of how it is to be exported, for `is_done` to know the result by."""
    asked: dict[str, object] = {
        "dtype": dtype,
        "shard_bytes": shard_bytes,
        "side_folder": side_folder,
        "vocab_size": vocab_size,
    }
    asked |= {"dialect": dialect, "config": config, "ignore": ignore.to_dict()}
    return manifest.fingerprint(folder, **{name: str(value) for name, value in asked.items()})


def is_done(out: Path, fingerprint: str) -> bool:
    """Return whether `out` is a whole export of the source with this fingerprint."""
    try:
        made = manifest.read(out)
        history = (made or {}).get("history") or [{}]
        if history[-1].get("detail", {}).get("fingerprint") != fingerprint:
            return False
        open_checkpoint(out)
    except (MconvError, AttributeError):
        return False
    return True
