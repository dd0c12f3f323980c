"""The containers of torch_dist that mconv knows, as tables.

    metadata.json    the backends and their versions
    common state     what is not sharded (args, iteration): `common.pt`, or a byte object among the chunks
    .metadata        torch's index, and its version

megatron-core up to 0.18 writes `common.pt`; 0.19 writes the byte object, and two of the four keys of metadata.json.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from mconv.convert.formats import archive
from mconv.convert.formats.jsonfile import read_json
from mconv.errors import FormatError, refuse

VERSIONS, COMMON = "metadata.json", "common.pt"
INSIDE = "common_state/shard_0_1"
"""The byte object that holds the common state where there is no `common.pt`: a list of one dictionary."""
NEWEST = "0.19.2"
"""The newest megatron-core whose containers were read."""
BACKENDS: dict[str, tuple[Any, ...]] = {
    "sharded_backend": ("torch_dist",), "sharded_backend_version": (1,),
    "common_backend": ("torch",), "common_backend_version": (1,),
}  # fmt: skip
"""Every key of metadata.json, and the values that mconv reads."""
INDEX_VERSIONS = (None, "1.0.0")
"""Versions of torch's index: None is torch before 2.10."""
ADVICE = f"save it with megatron-core {NEWEST} or older, or use a newer mconv"


@runtime_checkable
class Bytes(Protocol):
    """The range of a file that an archive takes."""

    @property
    def path(self) -> Path: ...
    @property
    def start(self) -> int: ...
    @property
    def length(self) -> int: ...


def check_backends(folder: Path) -> None:
    """Raise FormatError unless `metadata.json` names a container of the table."""
    path = folder / VERSIONS
    values = read_json(path)
    if "sharded_backend" not in values:
        raise FormatError(f"{path} has no sharded_backend; it is not the metadata.json of a torch_dist checkpoint")
    refuse(
        [_unknown(path, name, value) for name, value in values.items() if value not in BACKENDS.get(name, ())],
        doing=f"reading {folder}", kind=FormatError,
    )  # fmt: skip


def _unknown(path: Path, name: str, value: Any) -> str:
    known = BACKENDS.get(name)
    if known is None:
        return f"{path}: {name!r} is a key of no container that mconv knows ({', '.join(BACKENDS)}); {ADVICE}"
    return f"{path}: {name} is {value!r}; mconv reads {' or '.join(map(repr, known))}. {ADVICE[0].upper()}{ADVICE[1:]}"


def check_index(path: Path, state: Mapping[str, Any]) -> None:
    """Raise FormatError unless torch's index is of a version of the table."""
    if (version := state.get("version")) not in INDEX_VERSIONS:
        raise FormatError(f"{path}: version {version!r} of torch's index; mconv reads {INDEX_VERSIONS[-1]}. {ADVICE}")


def check_chunk(path: Path, place: Mapping[str, Any]) -> None:
    """Raise FormatError if an entry of the index is a chunk that was compressed or otherwise transformed."""
    if how := place.get("transform_descriptors"):
        raise FormatError(f"{path}: the chunks were stored through {str(how)[:60]}, which mconv does not undo. {ADVICE}")


def common(folder: Path, blobs: Mapping[str, Bytes]) -> dict[str, Any]:
    """Return the common state. Raises FormatError if it is in none of the places where a known container has it."""
    if (folder / COMMON).is_file():
        return _dictionary(archive.read(folder / COMMON), str(folder / COMMON))
    if INSIDE not in blobs:
        raise FormatError(_nowhere(folder, blobs))
    at, where = blobs[INSIDE], f"{folder}: {INSIDE}"
    found = archive.read(at.path, start=at.start, length=at.length)
    if not (isinstance(found, list) and len(found) == 1):
        raise FormatError(f"{where} is {type(found).__name__}, not the list of one dictionary that it is up to {NEWEST}")
    return _dictionary(found[0], where)


def _dictionary(found: Any, where: str) -> dict[str, Any]:
    if not isinstance(found, dict):
        raise FormatError(f"{where}: the common state is {type(found).__name__}, not a dictionary")
    return found


def _nowhere(folder: Path, blobs: Mapping[str, Any]) -> str:
    """Return what to say of a folder without a common state: incomplete, or of a container that nobody knows."""
    if other := sorted(name for name in blobs if name.startswith("common")):
        return f"{folder}: the common state is {other[0]}; mconv knows {COMMON} and {INSIDE}. {ADVICE}"
    return f"{folder / COMMON} is missing, and no {INSIDE} is in the index: the checkpoint is incomplete"
