"""Digests of logical tensors: of the bytes in row-major order, whatever format, layout or dialect holds them."""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import xxhash

from mconv.errors import FormatError

ALGORITHMS: dict[str, Callable[[], Any]] = {"xxh3-128": xxhash.xxh3_128, "sha256": hashlib.sha256}
"""The first is written (it costs a fortieth of a second a GB); all are read."""
ALGORITHM = next(iter(ALGORITHMS))
OF = "of the logical tensor's bytes, row-major"


@dataclass(frozen=True, slots=True)
class Digests:
    """Digest of each logical tensor: as stored, and as it is after the wanted cast."""

    stored: dict[str, str]
    cast: dict[str, str]


@dataclass(frozen=True, slots=True)
class Recorded:
    """The digests in a checkpoint's manifest, and the algorithm that made them."""

    algorithm: str
    digests: dict[str, str]


def combined(digests: Mapping[str, str]) -> str:
    """Return one digest of many: of lines `name digest`, sorted by name."""
    lines = "".join(f"{name} {digests[name]}\n" for name in sorted(digests))
    return f"{ALGORITHM} {xxhash.xxh3_128(lines.encode()).hexdigest()}"


def described(algorithm: str = ALGORITHM) -> str:
    """Return what a manifest says of its digests."""
    return f"{algorithm} {OF}"


def recorded(folder: Path, manifest: Mapping[str, Any] | None) -> Recorded:
    """Return the digests in the manifest of a checkpoint's folder. Raises FormatError if their algorithm is not known."""
    made = manifest or {}
    digests = made.get("digests", {})
    algorithm = str(made.get("digest", ALGORITHM)).split(" ", 1)[0]
    if digests and algorithm not in ALGORITHMS:
        raise FormatError(
            f"{folder}: the digests in its mconv.json are {algorithm[:40]!r}, which this mconv does not know "
            f"(it knows {', '.join(ALGORITHMS)}); use a newer mconv, or remove mconv.json to go without its digests"
        )
    return Recorded(algorithm if algorithm in ALGORITHMS else ALGORITHM, digests)


def check_digests(folder: Path, told: Mapping[str, str], found: Mapping[str, str]) -> None:
    """Raise FormatError where digests differ from those that a folder's manifest recorded, by the same algorithm."""
    changed = [name for name, value in found.items() if name in told and told[name] != value]
    if changed:
        raise FormatError(
            f"{folder}: {len(changed)} tensors ({', '.join(changed[:5])}) changed since mconv "
            "made this checkpoint (digests in mconv.json); restore it, or remove mconv.json if the change was meant"
        )
