"""`mconv.json`: what a checkpoint is, what it was made from, and a digest of each logical tensor."""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mconv
from mconv.convert.folders.ignored import Passed
from mconv.convert.folders.staging import MANIFEST
from mconv.convert.formats.jsonfile import read_json
from mconv.errors import FormatError, refuse
from mconv.extras import version

if TYPE_CHECKING:
    from mconv.shard.layout import Layout
    from mconv.spec import ModelSpec

NAME = MANIFEST
LOCAL = ("made_from", "ancestors", "merged_from")
"""Keys that say where other checkpoints lie on this machine: never published."""
RECIPES = ("blend", "surgery")
"""Keys that say how a model was made of others, and of which."""


def now() -> str:
    """Return the time in UTC, to the second, as manifests have it: 2026-11-30T19:23:11Z.

    SOURCE_DATE_EPOCH, by which builds are made the same to the byte, takes its place.
    """
    said = os.environ.get("SOURCE_DATE_EPOCH", "")
    at = datetime.fromtimestamp(int(said), timezone.utc) if said.isdecimal() else datetime.now(timezone.utc)
    return f"{at:%Y-%m-%dT%H:%M:%SZ}"


def versions() -> dict[str, str]:
    """Return the versions of those packages that are installed; converting needs only the first two."""
    here = {package: version(package) for package in ("torch", "safetensors", "transformers", "megatron-core")}
    return {package: found for package, found in here.items() if found}


def make(
    spec: "ModelSpec",
    *,
    format: str,
    dialect: str | None,
    layout: "Layout | None",
    dtype: str,
    source: dict[str, Any],
    digests: dict[str, str],
    history: list[dict[str, Any]],
    copies: Sequence[str] = (),
    ignored: Passed | None = None,
    made_from: Sequence[str] = (),
    ancestors: Sequence[str] = (),
    merged_from: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Return the manifest as JSON values. `source` and `history` name folders, never whole paths: it is published.

    Paths, as seen from the checkpoint's own folder, are in the keys of `LOCAL` alone, which `mconv push` leaves out:
    `made_from` are the checkpoints that this one must equal, `ancestors` all that it comes from (what a training started
    with too), `merged_from` the base and the adapters whose merge it is; each with the earliest first.
    """
    from mconv.convert.folders.digests import described

    return {
        "mconv": mconv.__version__,
        "made": now(),
        "family": spec.family,
        "spec": spec.to_dict(),
        "format": format,
        "dialect": dialect,
        "layout": asdict(layout) if layout else None,
        "vocab": {"true": spec.vocab_size, "padded": layout.padded_vocab if layout else spec.vocab_size},
        "dtype": dtype,
        "source": source,
        "made_from": list(made_from),
        "ancestors": list(ancestors),
        **({"merged_from": dict(merged_from)} if merged_from else {}),
        "history": history,
        "versions": versions(),
        "digest": described(),
        "digests": digests,
        "copies": list(copies),
        "ignored": _plain(ignored or {}),
    }


def _plain(ignored: Passed) -> dict[str, Any]:
    """Return what was passed over with values that JSON has; a text stands for any other."""
    return json.loads(json.dumps(ignored, default=repr, sort_keys=True))


def origins(folder: Path, source: Path, before: dict[str, Any] | None) -> list[str]:
    """Return `made_from`: the checkpoints that hold the same model as `folder`, the earliest first, `source` the last.

    `before` is the manifest of `source`; one that training has made names none, so nothing from before it is listed.
    """
    here, there = folder.resolve(), source.resolve()
    known = [there / path for path in (before or {}).get("made_from", [])]
    return [os.path.relpath(path, here) for path in (*known, there)]


def descent(folder: Path, source: Path, before: dict[str, Any] | None) -> list[str]:
    """Return `ancestors` of what is made in `folder` from `source`, whose manifest is `before`; `source` is the last."""
    here, there = folder.resolve(), source.resolve()
    known = [*(before or {}).get("ancestors", (before or {}).get("made_from", [])), "."]
    return [os.path.relpath(there / path, here) for path in known]


def moved(folder: Path, source: Path, paths: Mapping[str, str]) -> dict[str, str]:
    """Return `paths`, which are as seen from `source`, as seen from `folder`."""
    return {name: os.path.relpath(source.resolve() / path, folder.resolve()) for name, path in paths.items()}


def write(folder: Path, manifest: dict[str, Any]) -> None:
    (folder / NAME).write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")


def read(folder: Path) -> dict[str, Any] | None:
    """Return the manifest of a checkpoint, or None where there is none."""
    if not (folder / NAME).is_file():
        return None
    found = read_json(folder / NAME)
    lists = ("history", "verified", "copies", "made_from", "ancestors")
    objects_of = ("spec", "digests", "source", "ignored", "merged_from", "side_files", *RECIPES)
    kinds: dict[str, type] = {**dict.fromkeys(objects_of, dict), **dict.fromkeys(lists, list), "made": str}
    wrong = [
        f"{k} is {type(found[k]).__name__}" for k, kind in kinds.items() if not isinstance(found.get(k, kind()), kind)
    ]
    if not wrong:
        wrong += [f"the digest of {k} is {v!r}" for k, v in found.get("digests", {}).items() if not isinstance(v, str)]
        texts = [(n, v) for n in ("copies", "made_from", "ancestors") for v in found.get(n, [])]
        texts += [(name, v) for name in ("merged_from", "side_files") for v in found.get(name, {}).values()]
        verdicts = found.get("verified", [])
        wrong += [f"{name} holds {value!r}" for name, value in texts if not isinstance(value, str)]
        wrong += [f"ignored holds {k!r}: {v!r}" for k, v in found.get("ignored", {}).items() if not isinstance(v, dict)]
        wrong += [f"verified holds {value!r}" for value in verdicts if not isinstance(value, dict)]
    refuse([f"{folder / NAME}: {what}" for what in wrong], doing=f"reading {folder / NAME}", kind=FormatError)
    return found


def sources(made: Mapping[str, Any] | None) -> dict[str, dict[str, Any]]:
    """Return what a manifest keeps of each model that its recipe is about, by that model's name; {} without a recipe."""
    parts = [(made or {}).get(key, {}).get("sources") for key in RECIPES]
    return {name: one for part in parts if isinstance(part, dict) for name, one in part.items() if isinstance(one, dict)}


def fingerprint(folder: Path, **asked: Any) -> str:
    """Return a cheap fingerprint of a checkpoint's files (names, sizes, times of change) and of the request."""
    files = [(p.relative_to(folder).as_posix(), p.stat()) for p in sorted(folder.rglob("*")) if p.is_file()]
    told = [(name, status.st_size, status.st_mtime_ns) for name, status in files]
    return hashlib.sha256(json.dumps([told, sorted(asked.items())], default=str).encode()).hexdigest()
