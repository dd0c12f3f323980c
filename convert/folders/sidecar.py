"""The sidecar files that travel with a model: one rule, for every command that reads or writes a model folder.

Everything that is not weights travels, sub-folders and code too: bytes as they are, never run. What stays behind is in
the table, and is told by name and reason. Names come from elsewhere: one that leads out of the folder, or that a file
system or the Hub could take for another, does not travel.
"""

import fnmatch
import hashlib
import os
import shutil
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

LARGEST = 100_000_000
"""Bytes of a file that still counts as small; the largest tokenizers have 35 million."""
MOST, TOGETHER = 5000, 1_000_000_000
"""Files that travel with one model, and their bytes: each saved checkpoint has them. Small ones come first."""
DEEPEST = 8
"""Folders in one another."""
CONFIG = "config.json"
CARD = "README.md"
LEGAL = ("LICENSE", "LICENCE", "NOTICE", "USE_POLICY", "COPYING")
"""Beginnings, in upper case, of the names of license files."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LeftOut:
    """A file or folder that does not travel."""

    name: str
    """Below the folder; that of a folder has a slash at its end."""
    why: str


@dataclass(frozen=True, slots=True)
class Sidecars:
    """The sidecar files of a model folder: everything but its weights."""

    files: dict[str, Path]
    """The files that travel: name below the folder, with slashes -> the file."""
    left_out: tuple[LeftOut, ...]


@dataclass(frozen=True, slots=True)
class Row:
    """Names that do not travel, in lower case: a file's own name, or a folder's with a slash at its end."""

    patterns: tuple[str, ...]
    why: str


def _row(why: str, patterns: str) -> Row:
    return Row(tuple(patterns.split()), why)


OURS = (".mconv-*", "mconv.json")
"""Written anew with every result, so nobody misses them."""
# fmt: off
LEFT_OUT = (
    _row("hidden",
         ".* .*/"),
    _row("a cache, or compiled code",
         "__pycache__/ node_modules/ *.pyc *.so *.dll *.dylib *.exe"),
    _row("unfinished",
         "*.tmp *.part *.partial *.incomplete *.lock *.swp *~"),
    _row("may hold a secret",
         "*.env *.netrc *.pem *.key *.p12 *.pfx *.kdbx id_rsa* id_ed25519* credentials* secrets* secret.* token "
         "token.* *_token *_token.txt hf_token*"),
    _row("the state of a training",
         "optimizer*.pt optimizer*.bin optim*.pt distrib_optim.pt scheduler.pt scaler.pt rng_state* "
         "training_args.bin trainer_state.json zero_to_fp32.py zero_pp_rank_* *_optim_states.pt *_model_states.pt "
         "global_step*/ checkpoint-*/ iter_*/ mp_rank_*/ pytorch_model_fsdp*/"),
    _row("a log",
         "runs/ logs/ wandb/ mlruns/ tensorboard/ lightning_logs/ events.out.tfevents* *.log *.out *.err"),
    _row("an adapter of its own",
         "adapter_config.json adapter_model.*"),
    _row("other weights, or their config",
         "original/ onnx/ openvino/ coreml/ gguf/ consolidated* params.json checklist.chk *.safetensors *.bin "
         "*.pth *.pt *.ckpt *.safetensors.index*.json *.bin.index*.json *.msgpack.index*.json *.h5.index*.json "
         "*.pkl *.pickle *.gguf *.ggml *.msgpack *.h5 *.ot *.onnx *.onnx_data* *.npz *.npy *.distcp *.nemo "
         "*.tflite *.mlmodel *.pte *.engine *.llamafile *.torchscript *.joblib"),
)
# fmt: on
"""Files and folders that do not travel, and the reason: the first row that fits counts."""
MODEL = _row("a model of its own", "*.safetensors *.bin *.pth *.pt *.ckpt *.gguf *.msgpack *.h5 *.onnx")
"""A sub-folder that has one of these is another model, and stays behind whole: its config would be without weights."""


def look(folder: Path, *, weights: Iterable[Path | str] = ()) -> Sidecars:
    """Return what stands beside the weights of a folder. `weights` are the model's own, which nobody misses.

    Nothing is opened and no link that leads out of the folder is followed.
    """
    if not folder.is_dir():
        return Sidecars({}, ())
    sizes, odd = _names(folder)
    travel, left_out = judge(sizes)
    own = {Path(name).name for name in weights}
    shown = [item for item in (*odd, *left_out) if item.name not in own]
    return Sidecars({name: folder / name for name in travel}, tuple(sorted(shown, key=lambda item: item.name)))


def judge(sizes: Mapping[str, int | None]) -> tuple[list[str], list[LeftOut]]:
    """Return which of a folder's files travel, and what is left out and why. `sizes`: name -> bytes, None if unknown."""
    models = {str(PurePosixPath(name).parent) for name in sizes if "/" in name and _fits(MODEL, name)}
    travel: list[str] = []
    left_out: dict[str, str] = {}
    together = 0
    for name in sorted(sizes, key=lambda name: (sizes[name] or 0, name)):
        size = sizes[name] or 0
        above = next(((f"{p}/", w) for p in _above(name) if (w := _folder_stays(p, models)) is not None), None)
        where, why = above or (name, _stays(name, size))
        if why is None and (len(travel) == MOST or together + size > TOGETHER):
            why = f"more than {MOST} files, or {TOGETHER // 1_000_000} MB, in all"
        if why is None:
            travel.append(name)
            together += size
        elif why:
            left_out[where] = why
    return sorted(travel), [LeftOut(name=name, why=why) for name, why in sorted(left_out.items())]


def note(left_out: Collection[LeftOut], *, most: int = 8) -> str | None:
    """Return the line that tells what did not travel, or None."""
    if not left_out:
        return None
    by_why: dict[str, list[str]] = {}
    for item in left_out:
        by_why.setdefault(item.why, []).append(readable(item.name))
    parts = [f"{', '.join(names[:most])}{f' and {len(names) - most} more' if len(names) > most else ''} ({why})"
             for why, names in by_why.items()]  # fmt: skip
    return f"side files left out: {'; '.join(parts)}"


def copy(files: Mapping[str, Path], into: Path) -> dict[str, str]:
    """Copy files to their names below a folder, and return the sha256 of each: bytes only, no rights and no links."""
    digests = {}
    for name, path in files.items():
        target = into / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
        digests[name] = sha256(target)
    return digests


def is_legal(name: str) -> bool:
    """Return whether a file says what may be done with a model."""
    return name.upper().startswith(LEGAL)


def sha256(path: Path) -> str:
    """Return the digest of a small file's bytes."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def readable(name: str) -> str:
    """Return a name that is safe to print."""
    return name if name.isprintable() else ascii(name)


# ---- the rule --------------------------------------------------------------------------------------------------------
def _above(name: str) -> list[str]:
    """Return the folders that a file is in, outermost first."""
    return [str(p) for p in PurePosixPath(name).parents][-2::-1]


def _folder_stays(folder: str, models: set[str]) -> str | None:
    """Return the reason why a folder stays behind, or None; "" where nobody misses it."""
    name = PurePosixPath(folder).name
    if (why := _by_name(f"{name}/")) is not None:
        return why
    if name.lower() in (CONFIG, CARD.lower()):
        return "a folder with the name of a file that mconv writes"
    return MODEL.why if folder in models else None


def _stays(name: str, size: int) -> str | None:
    """Return the reason why a file stays behind, or None; "" where nobody misses it."""
    base = PurePosixPath(name).name
    if (why := _by_name(base)) is not None:
        return why
    if why := _odd(name):
        return why
    if size > LARGEST:
        return f"{size / 1e6:.0f} MB: more than the {LARGEST // 1_000_000} that a small file may have"
    return None


def _ours(name: str) -> bool:
    return any(fnmatch.fnmatchcase(name.lower(), pattern) for pattern in OURS)


def _by_name(name: str) -> str | None:
    if _ours(name.rstrip("/")):
        return ""
    return next((row.why for row in LEFT_OUT if _fits(row, name)), None)


def _fits(row: Row, name: str) -> bool:
    base = PurePosixPath(name).name + "/" * name.endswith("/")
    return any(fnmatch.fnmatchcase(base.lower(), p) for p in row.patterns if p.endswith("/") == base.endswith("/"))


def _odd(name: str) -> str | None:
    """Return the problem of a name, whatever the file holds, or None."""
    parts = name.split("/")
    if not name.isprintable() or "\\" in name or any(part in ("", ".", "..") or part != part.strip() for part in parts):
        return "a name that not every file system can hold"
    if len(name.encode()) > 200:
        return "a name of more than 200 bytes"
    if len(parts) > DEEPEST:
        return f"more than {DEEPEST} folders deep"
    return "its name differs from config.json only in case" if name != CONFIG and name.lower() == CONFIG else None


# ---- on disk ---------------------------------------------------------------------------------------------------------
def _names(folder: Path) -> tuple[dict[str, int | None], list[LeftOut]]:
    """Return the regular files below a folder with their sizes, and everything else. Skips folders that stay behind."""
    inside = _allowed(folder)
    sizes: dict[str, int | None] = {}
    odd: list[LeftOut] = []
    for name, entry in _walk(folder, ""):
        if entry.is_dir(follow_symlinks=False):
            if not _ours(entry.name):
                odd.append(LeftOut(name=f"{name}/", why=_by_name(f"{entry.name}/") or "not readable, or too deep"))
        elif entry.is_symlink() and (why := _bad_link(folder / name, inside)) and name != CONFIG:
            odd.append(LeftOut(name=name, why=why))
        elif not entry.is_file():
            odd.append(LeftOut(name=name, why="not a regular file"))
        else:
            sizes[name] = entry.stat().st_size
    return sizes, odd


def _walk(folder: Path, before: str) -> Iterator[tuple[str, "os.DirEntry[str]"]]:
    """Yield every file, and every folder that stays behind by its name."""
    with os.scandir(folder) as entries:
        for entry in sorted(entries, key=lambda entry: entry.name):
            name = before + entry.name
            if entry.is_dir(follow_symlinks=False) and _open(folder / entry.name, name):
                yield from _walk(folder / entry.name, f"{name}/")
            else:
                yield name, entry


def _open(folder: Path, name: str) -> bool:
    """Return whether a folder is looked into."""
    return _by_name(f"{folder.name}/") is None and name.count("/") < DEEPEST and os.access(folder, os.R_OK | os.X_OK)


def _allowed(folder: Path) -> list[Path]:
    """Return the folders that links may lead to: the folder itself, and for a snapshot of the Hub's cache its blobs."""
    real = folder.resolve()
    blobs = [real.parent.parent / "blobs"] if real.parent.name == "snapshots" else []
    return [real, *(path.resolve() for path in blobs)]


def _bad_link(link: Path, inside: list[Path]) -> str | None:
    try:
        target = link.resolve(strict=True)
    except (OSError, RuntimeError):
        return "not a regular file"
    if target.is_dir():
        return "a link to a folder"
    cached = target.parent.name == "blobs" and target.parent.parent.name.startswith("models--")
    if not cached and not any(target.is_relative_to(place) for place in inside):
        return "a link that leads out of the folder; put the file itself there"
    return None
