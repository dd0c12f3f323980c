"""Pickles from elsewhere, read without running them: an allow-list of names, stand-ins for what else is known.

Tensors come back as `Pending`: dtype, shape and where their bytes lie. Nothing is loaded, and no class of the file's
choosing is ever called.
"""

import argparse
import collections
import io
import pathlib
import pickle
import types
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, NoReturn

from mconv.convert.formats import dtype as d
from mconv.convert.formats.dtype import DType
from mconv.errors import FormatError

STORAGES = {
    "FloatStorage": d.FLOAT32, "DoubleStorage": d.FLOAT64, "HalfStorage": d.FLOAT16, "BFloat16Storage": d.BFLOAT16,
    "LongStorage": d.INT64, "IntStorage": d.INT32, "ShortStorage": d.INT16, "CharStorage": d.INT8,
    "ByteStorage": d.UINT8, "BoolStorage": d.BOOL,
}  # fmt: skip
STAND_INS = ("megatron.", "transformer_engine.", "signal", "torch.distributed.checkpoint.")
"""Modules whose classes (enums, index entries) are named in checkpoints: never imported, read as an inert `StandIn`."""

UNREAD = {
    "_rebuild_tensor_v3": "a tensor of a dtype that mconv does not convert (8-bit floats, unsigned integers)",
    "_rebuild_qtensor": "a quantised tensor, which mconv does not convert",
    "_rebuild_sparse_tensor": "a sparse tensor, which mconv does not convert",
    "_rebuild_wrapper_subclass": "a tensor of a subclass (quantised, most likely), which mconv does not convert",
}
"""Functions of torch that rebuild tensors which are not plain weights: harmless, but not read."""


@dataclass(frozen=True, slots=True)
class Storage:
    """A storage record of an archive: its key there, its dtype, its length in elements."""

    key: str
    dtype: DType
    numel: int


@dataclass(frozen=True, slots=True)
class Pending:
    """A tensor that was not loaded."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    @property
    def dtype(self) -> DType:
        return self.storage.dtype


class StandIn:
    """An object of a class that we do not import: remembers its class, arguments and state, does nothing."""

    def __init__(self, *args: object) -> None:
        self.args = args

    def __setstate__(self, state: object) -> None:
        self.state = state

    def __call__(self, *args: object) -> "StandIn":
        return StandIn(*args)

    def __hash__(self) -> int:
        return hash(str(self.args))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, StandIn) and self.args == other.args


def stand_in(module: str, name: str) -> type[StandIn]:
    return type(name, (StandIn,), {"__module__": f"standin.{module}"})


def _tensor(storage: Any, offset: Any, shape: Any, stride: Any, *_: object) -> Pending:
    numbers = (offset, *shape, *stride)
    if (
        not isinstance(storage, Storage)
        or not all(type(n) is int and n >= 0 for n in numbers)
        or len(shape) != len(stride)
    ):
        raise pickle.UnpicklingError("a tensor without a storage or without a shape")
    return Pending(storage, offset, tuple(shape), tuple(stride))


def _parameter(data: Pending, *_: object) -> Pending:
    return data


def _typed(rebuild: Any, kind: Any, args: Any, *_: object) -> Pending:
    """A tensor with attributes (Megatron marks its main weights so), which are let go."""
    if rebuild not in (_tensor, _parameter) or not isinstance(args, tuple):
        raise pickle.UnpicklingError("a tensor that is rebuilt by something else")
    return _parameter(*args) if rebuild is _parameter else _tensor(*args)


def _size(values: tuple[int, ...] = ()) -> tuple[int, ...]:
    return tuple(values)


def _opaque(*args: object) -> StandIn:
    return StandIn(*args)


Names = dict[tuple[str, str], Any]
"""(module, name) in a pickle -> what it is read as."""
COMMON: Names = {
    ("collections", "OrderedDict"): collections.OrderedDict,
    ("collections", "defaultdict"): collections.defaultdict,
    ("argparse", "Namespace"): argparse.Namespace,
    ("types", "SimpleNamespace"): types.SimpleNamespace,
    ("pathlib", "PosixPath"): pathlib.PurePosixPath,
    ("pathlib._local", "PosixPath"): pathlib.PurePosixPath,
    ("pathlib", "PurePosixPath"): pathlib.PurePosixPath,
    ("builtins", "set"): set,
    ("builtins", "slice"): slice,
    ("builtins", "dict"): dict,
    ("builtins", "list"): list,
    ("_io", "BytesIO"): io.BytesIO,
    ("torch", "Size"): _size,
    ("torch", "device"): _opaque,
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch._utils", "_rebuild_tensor"): _tensor,
    ("torch._utils", "_rebuild_parameter"): _parameter,
    ("torch._tensor", "_rebuild_from_type_v2"): _typed,
    ("torch", "Tensor"): _opaque,
    ("torch.nn.parameter", "Parameter"): _opaque,
    ("torch.serialization", "_get_layout"): _opaque,
    ("numpy", "dtype"): _opaque,
    ("numpy", "ndarray"): StandIn,
    ("numpy.core.multiarray", "_reconstruct"): _opaque,
    ("numpy._core.multiarray", "_reconstruct"): _opaque,
    ("numpy.core.multiarray", "scalar"): _opaque,
    ("numpy._core.multiarray", "scalar"): _opaque,
    ("_codecs", "encode"): _opaque,
    **{("torch", name): dtype for name, dtype in d.BY_NAME.items()},
    **{("torch", name): dtype for name, dtype in STORAGES.items()},
}


_PythonUnpickler: Any = pickle._Unpickler


class Unpickler(_PythonUnpickler):
    """Resolves only the names of a table, and inert stand-ins for the modules of `STAND_INS`.

    The Python one, not the C one: its memo is a dictionary, where the other allocates an array as large as the file
    asks for; and its BUILD can be held to instances, where the other would set attributes of our own classes.
    """

    dispatch: ClassVar[dict[int, Any]] = dict(_PythonUnpickler.dispatch)

    def load_build(self) -> None:
        if not isinstance(self.stack[-2], (StandIn, argparse.Namespace, types.SimpleNamespace, dict)):
            raise pickle.UnpicklingError("it sets attributes of something that is not a plain object")
        super().load_build()

    dispatch[pickle.BUILD[0]] = load_build

    def __init__(
        self, file: io.BytesIO, *, where: str, also: Names | None = None, stand_ins: tuple[str, ...] = STAND_INS
    ) -> None:
        super().__init__(file)
        self.where, self.stand_ins = where, stand_ins
        self.table = COMMON | (also or {})

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in self.table:
            return self.table[module, name]
        if module.startswith(self.stand_ins) and name.isidentifier():
            return stand_in(module, name)
        if module == "torch._utils" and name in UNREAD:
            raise FormatError(f"{self.where} holds {UNREAD[name]}; give plain weights")
        raise FormatError(
            f"{self.where}: the pickle names {module}.{name}, which mconv does not load; do not trust this file"
        )

    def persistent_load(self, pid: Any) -> Storage:
        if not (isinstance(pid, tuple) and len(pid) == 5 and pid[0] == "storage" and isinstance(pid[1], DType)):
            raise FormatError(f"{self.where}: the pickle refers to something other than a tensor storage")
        return Storage(key=str(pid[2]), dtype=pid[1], numel=int(pid[4]))


def loads(data: bytes, *, where: str, also: Names | None = None, stand_ins: tuple[str, ...] = STAND_INS) -> Any:
    """Unpickle `data` safely. Raises FormatError, with `where`, on anything that is not understood.

    `also`: names that are known beside those of every pickle; `stand_ins`: modules whose other names are read inertly.
    """

    def fail(error: BaseException) -> NoReturn:
        raise FormatError(f"{where}: damaged or unknown pickle ({type(error).__name__}: {error})") from error

    load: Callable[[], Any] = Unpickler(io.BytesIO(data), where=where, also=also, stand_ins=stand_ins).load
    try:
        return load()
    except FormatError:
        raise
    except (MemoryError, RecursionError) as error:
        fail(error)
    except Exception as error:  # a mutated pickle raises nearly anything
        fail(error)
