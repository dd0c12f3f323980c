"""`mconv.json`: what a checkpoint is, what it was made from, and a digest of each logical tensor."""

import hashlib
import importlib.metadata
import json
import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import mconv
from mconv.convert.digests import described
from mconv.convert.formats.hf import read_json
from mconv.convert.ignored import Passed
from mconv.convert.place import MANIFEST
from mconv.errors import FormatError, refuse
from mconv.shard.layout import Layout
from mconv.spec import ModelSpec

NAME = MANIFEST


def versions() -> dict[str, str]:
    """The versions of what takes part in a conversion."""
    return {p: importlib.metadata.version(p) for p in ("torch", "safetensors", "transformers", "megatron-core")}


def make(
    spec: ModelSpec,
    *,
    format: str,
    dialect: str | None,
    layout: Layout | None,
    dtype: str,
    source: dict[str, Any],
    digests: dict[str, str],
    history: list[dict[str, Any]],
    copies: Sequence[str] = (),
    ignored: Passed | None = None,
    made_from: Sequence[str] = (),
) -> dict[str, Any]:
    """The manifest as JSON values. `source` and `history` name folders, never whole paths: manifests are published.

    Only `made_from` has paths, as seen from the checkpoint's own folder, and `mconv push` leaves it out.
    """
    return {
        "mconv": mconv.__version__,
        "family": spec.family,
        "spec": spec.to_dict(),
        "format": format,
        "dialect": dialect,
        "layout": asdict(layout) if layout else None,
        "vocab": {"true": spec.vocab_size, "padded": layout.padded_vocab if layout else spec.vocab_size},
        "dtype": dtype,
        "source": source,
        "made_from": list(made_from),
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
    """For `made_from`: the checkpoints that `folder` holds the same model as, the earliest first, `source` the last.

    `before` is the manifest of `source`; one that training has made names none, so nothing from before it is listed.
    """
    here, there = folder.resolve(), source.resolve()
    known = [there / path for path in (before or {}).get("made_from", [])]
    return [os.path.relpath(path, here) for path in (*known, there)]


def write(folder: Path, manifest: dict[str, Any]) -> None:
    (folder / NAME).write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")


def read(folder: Path) -> dict[str, Any] | None:
    """The manifest beside a checkpoint, or None where there is none."""
    if not (folder / NAME).is_file():
        return None
    found = read_json(folder / NAME)
    lists = ("history", "verified", "copies", "made_from")
    kinds: dict[str, type] = {
        "spec": dict,
        "digests": dict,
        "source": dict,
        "ignored": dict,
        **dict.fromkeys(lists, list),
    }
    wrong = [
        f"{k} is {type(found[k]).__name__}" for k, kind in kinds.items() if not isinstance(found.get(k, kind()), kind)
    ]
    if not wrong:
        wrong += [f"the digest of {k} is {v!r}" for k, v in found.get("digests", {}).items() if not isinstance(v, str)]
        texts, verdicts = [(n, v) for n in ("copies", "made_from") for v in found.get(n, [])], found.get("verified", [])
        wrong += [f"{name} holds {value!r}" for name, value in texts if not isinstance(value, str)]
        wrong += [f"ignored holds {k!r}: {v!r}" for k, v in found.get("ignored", {}).items() if not isinstance(v, dict)]
        wrong += [f"verified holds {value!r}" for value in verdicts if not isinstance(value, dict)]
    refuse(wrong, doing=f"reading {folder / NAME}", kind=FormatError)
    return found


def fingerprint(folder: Path, **asked: Any) -> str:
    """Of a checkpoint's files (names, sizes, times of change) and of what was asked: cheap, for knowing it again."""
    files = [(p.relative_to(folder).as_posix(), p.stat()) for p in sorted(folder.rglob("*")) if p.is_file()]
    told = [(name, status.st_size, status.st_mtime_ns) for name, status in files]
    return hashlib.sha256(json.dumps([told, sorted(asked.items())], default=str).encode()).hexdigest()
