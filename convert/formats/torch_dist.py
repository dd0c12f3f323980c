"""megatron-core's distributed checkpoint (`torch_dist`): global tensors in chunks, layers stacked on axis 0.

    .metadata        pickled index: every global tensor, its chunks, and where each lies
    __R_N.distcp     one `torch.save` archive a chunk, end to end
    common.pt        what is not sharded: args, iteration, ... (`container.py`: megatron-core 0.19 has no such file)
    metadata.json    the versions; written last, it makes the folder valid

It is read here with plain files, and written in `distcp.py`: no model, no process group, no megatron-core.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mconv.convert.formats import archive, container
from mconv.convert.formats.container import COMMON as COMMON
from mconv.convert.formats.container import VERSIONS as VERSIONS
from mconv.convert.formats.dtype import DType
from mconv.convert.formats.tensors import Located
from mconv.convert.formats.unpickle import StandIn, loads, stand_in
from mconv.errors import FormatError

INDEX = ".metadata"
TRAINING_STATE = (
    "optimizer.",
    "optimizer/",
    "rng_state",
    "opt_param_scheduler",
    "rerun_state_machine_state",
    "common_state/",
)
"""Keys that belong to a training run, not to the model."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """One stored rectangle of a global tensor, and the archive that holds it."""

    offsets: tuple[int, ...]
    shape: tuple[int, ...]
    path: Path
    start: int
    length: int

    def locate(self, name: str, dtype: DType) -> Located:
        """Return the place of the chunk's bytes. Raises FormatError if its archive does not hold what the index says."""
        found = archive.read(self.path, start=self.start, length=self.length)
        if not isinstance(found, Located) or (found.shape, found.dtype) != (self.shape, dtype):
            said = (found.shape, found.dtype) if isinstance(found, Located) else type(found).__name__
            raise FormatError(f"{self.path}: {name} at {self.offsets} should be {self.shape} {dtype}, but is {said}")
        return found


@dataclass(frozen=True, slots=True)
class Global:
    """A global tensor: its whole shape and its chunks."""

    shape: tuple[int, ...]
    dtype: DType
    chunks: tuple[Chunk, ...]


class _Index(StandIn):
    """torch's MetadataIndex: the key of a chunk."""

    def __setstate__(self, state: Any) -> None:
        self.fqn, self.offset = state["fqn"], tuple(state.get("offset") or ())

    def __hash__(self) -> int:
        return hash((self.fqn, self.offset))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Index) and (self.fqn, self.offset) == (other.fqn, other.offset)


DCP = "torch.distributed.checkpoint"
CLASSES = {
    "metadata": ("Metadata", "TensorStorageMetadata", "BytesStorageMetadata", "ChunkStorageMetadata", "TensorProperties",
                 "_MEM_FORMAT_ENCODING", "StorageMeta"),
    "filesystem": ("_StorageInfo", "_StoragePrefix"),
    "planner": ("SavePlan", "WriteItem", "WriteItemType", "TensorWriteData", "BytesIOWriteData"),
}  # fmt: skip
"""Classes of torch's index, by module of its `distributed.checkpoint`. Nothing else may be in there: megatron-core
and torch read it with plain `pickle` later, where verify loads a model."""
NAMES = {
    **{
        (f"{DCP}.{module}", name): stand_in(f"{DCP}.{module}", name)
        for module, names in CLASSES.items()
        for name in names
    },
    (f"{DCP}.metadata", "MetadataIndex"): _Index,
}


def is_torch_dist(folder: Path) -> bool:
    return (folder / VERSIONS).is_file() or (folder / INDEX).is_file()


def open_folder(folder: Path) -> tuple[dict[str, Global], dict[str, Any]]:
    """Every global tensor of the model by key, and the common state. Reads the index and the small files only."""
    tensors, blobs = _open(folder)
    return {fqn: x for fqn, x in tensors.items() if not fqn.startswith(TRAINING_STATE)}, container.common(folder, blobs)


def open_training(folder: Path) -> tuple[dict[str, Global], dict[str, Chunk]]:
    """Return what `open_folder` leaves out: the global tensors of the training state, and every byte object, by key."""
    tensors, blobs = _open(folder)
    return {fqn: x for fqn, x in tensors.items() if fqn.startswith(TRAINING_STATE)}, blobs


def _open(folder: Path) -> tuple[dict[str, Global], dict[str, Chunk]]:
    for name in (VERSIONS, INDEX):
        if not (folder / name).is_file():
            raise FormatError(f"{folder / name} is missing: the checkpoint was not saved to its end, or not copied whole")
    container.check_backends(folder)
    where = str(folder / INDEX)
    state = getattr(loads((folder / INDEX).read_bytes(), where=where, also=NAMES, stand_ins=()), "state", None)
    try:
        container.check_index(folder / INDEX, state)  # type: ignore[arg-type]
        return _index(folder, state)  # type: ignore[arg-type]
    except FormatError:
        raise
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise FormatError(f"{where}: not the index of a checkpoint ({type(error).__name__}: {error})") from error


def _index(folder: Path, state: dict[str, Any]) -> tuple[dict[str, Global], dict[str, Chunk]]:
    places = {key: value.state for key, value in state["storage_data"].items()}
    tensors: dict[str, Global] = {}
    blobs: dict[str, Chunk] = {}
    for fqn, entry in state["state_dict_metadata"].items():
        if not isinstance(fqn, str):
            raise TypeError(f"a key is {type(fqn).__name__}")
        described = getattr(entry, "state", None) or {}
        if "size" not in described:
            blobs[fqn] = _chunk(folder, places[_key(fqn, ())], (), ())
            continue
        chunks = [(tuple(c.state["offsets"]), tuple(c.state["sizes"])) for c in described["chunks"]]
        whole = tuple(described["size"])
        if outside := [at for at, shape in chunks if not _inside(at, shape, whole)]:
            raise FormatError(f"{folder / INDEX}: {fqn} {whole} has a chunk at {outside[0]}, which lies outside of it")
        tensors[fqn] = Global(
            whole,
            described["properties"].state[0],
            tuple(_chunk(folder, places[_key(fqn, at)], at, shape) for at, shape in chunks),
        )
    return tensors, blobs


def _inside(offsets: tuple[int, ...], shape: tuple[int, ...], whole: tuple[int, ...]) -> bool:
    numbers = zip(offsets, shape, whole, strict=True)
    return all(type(o) is int and type(n) is int and o >= 0 and n >= 0 and o + n <= size for o, n, size in numbers)


def _key(fqn: str, offsets: tuple[int, ...]) -> _Index:
    index = _Index()
    index.__setstate__({"fqn": fqn, "offset": offsets})
    return index


def _chunk(folder: Path, place: dict[str, Any], offsets: tuple[int, ...], shape: tuple[int, ...]) -> Chunk:
    container.check_chunk(folder / INDEX, place)
    name = place["relative_path"]
    if Path(name).name != name:
        raise FormatError(f"{folder / INDEX}: {name!r} is not the name of a file in this folder")
    if not (folder / name).is_file():
        raise FormatError(f"{folder / name} is missing, but the index names it; the checkpoint is incomplete")
    start, length, size = place["offset"], place["length"], (folder / name).stat().st_size
    if not (start >= 0 and length >= 0 and start + length <= size):
        raise FormatError(
            f"{folder / name} has {size} bytes, the index looks for {start + length}; the file is truncated"
        )
    return Chunk(offsets, shape, folder / name, start, length)


# ---- names -----------------------------------------------------------------------------------------------------------
def chunk_key(fqn: str, offsets: tuple[int, ...]) -> str:
    """Return mconv's key of a chunk."""
    return f"{fqn}@{','.join(map(str, offsets))}"


def split_key(key: str) -> tuple[str, tuple[int, ...]]:
    """Return the two parts of a `chunk_key`."""
    fqn, _, offsets = key.rpartition("@")
    return fqn, tuple(int(n) for n in offsets.split(","))
