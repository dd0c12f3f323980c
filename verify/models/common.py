"""Interface of both kinds of model, their options, and the sampling of hidden states."""

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from mconv.convert.checkpoint.model import Checkpoint
from mconv.convert.spelling.table import Logical, Row, Stored
from mconv.shard.cut import Piece
from mconv.spec import ModelSpec
from mconv.train.megatron.parallel import Parallel
from mconv.verify.progress import advance
from mconv.verify.weight_streaming import WeightOptions

SAMPLE = 32
"""Positions of each row at which hidden states are kept."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Repair:
    """A repair to try on a model: other fields of its spec, other tensors in place of its own."""

    spec: Mapping[str, Any] = field(default_factory=dict)
    mended: Callable[[Logical], Tensor | None] = lambda _: None
    """Returns the tensor to use for a logical one, one dimension for each axis; None for the model's own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunOptions:
    """Arithmetic, layout and memory of a model's run."""

    dtype: torch.dtype = torch.float32
    narrow: tuple[torch.dtype, ...] = ()
    """Dtypes that weights are rounded to first, one after the other: those of the other side that have fewer bits."""
    streamed: bool = False
    parallel: Parallel = field(default_factory=Parallel)
    """Layout of a Megatron side."""
    only: frozenset[str] | None = None
    """Layers that run in a streamed model; the others return their input."""
    repair: Repair = field(default_factory=Repair)
    """Repair of a streamed model on one rank."""

    @property
    def load_dtype(self) -> torch.dtype:
        """Dtype that weights are read into: fp32 if they are rounded to `narrow` and then cast to another dtype."""
        return self.dtype if self.narrow in ((), (self.dtype,)) else torch.float32

    def skips(self, place: str) -> bool:
        """Return whether a layer is to return its input."""
        return self.only is not None and place.isdigit() and place not in self.only

    @property
    def weights(self) -> WeightOptions:
        """Dtypes and device of a streamed module's weights."""
        return WeightOptions(load_dtype=self.load_dtype, dtype=self.dtype, device=self.device)

    @property
    def device(self) -> torch.device:
        return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")


@runtime_checkable
class Scores(Protocol):
    """Logits of a run, computed when they are asked for."""

    layers: dict[str, Float[Tensor, "b n d"]]
    """Hidden states behind each layer at some positions: `embed`, `0`, `1`, ..., `final_norm`."""

    def at(self, positions: Int[Tensor, "n"]) -> Float[Tensor, "b n v"]:
        """Return logits over the true vocabulary at some positions."""

    def chunks(self) -> Iterator[Float[Tensor, "b c v"]]:
        """Yield logits over the true vocabulary, `CHUNK` positions at a time."""


@runtime_checkable
class Model(Protocol):
    """A model to compare. Every rank calls its methods; rank 0 gets the answer, the others None."""

    checkpoint: Checkpoint
    spec: ModelSpec
    """The checkpoint's architecture, repaired."""
    loaded_by: str
    transposed: bool
    """True if hidden states are [s b d] inside the model, not [b s d]."""

    def modules(self) -> dict[str, nn.Module]:
        """Return this rank's embedding, layers and final norm, under the names of `Scores.layers`."""

    def modules_of_row(self, layer: int, row: Row) -> list[tuple[nn.Module, Piece]]:
        """Return the modules of a layer that compute a row of the family's table, each with its part of the output."""

    def run(self, tokens: Int[Tensor, "b s"], positions: Int[Tensor, "b s"] | None = None) -> Scores | None: ...

    def release(self) -> None:
        """Free what only further runs need."""


def sampled(length: int, *, most: int = SAMPLE) -> Int[Tensor, "n"]:
    """Return `most` positions at which to keep hidden states, the last one included."""
    return torch.linspace(0, length - 1, min(most, length)).long()


def hidden_output(output: Any) -> Tensor:
    """Return the hidden states in a module's output."""
    found: Tensor = output[0] if isinstance(output, tuple) else output
    return found


def swap_axes(hidden: Tensor, *, transposed: bool) -> Tensor:
    """Return hidden states with sequence and batch swapped if the model is `transposed`: to [b s ...] or back."""
    return hidden.transpose(0, 1) if transposed else hidden


@contextlib.contextmanager
def hooked(handles: Iterable[RemovableHandle]) -> Iterator[None]:
    """Remove hooks at the end of the context."""
    here = list(handles)
    try:
        yield
    finally:
        for handle in here:
            handle.remove()


def round_in_place(parameters: dict[str, Tensor], narrow: tuple[torch.dtype, ...]) -> None:
    """Round weights in place to each of `narrow`."""
    for tensor in parameters.values() if narrow else ():
        tensor.copy_(rounded(tensor, narrow))


def rounded(tensor: Tensor, narrow: tuple[torch.dtype, ...]) -> Tensor:
    """Return a tensor rounded to each of `narrow`, one after the other."""
    for dtype in narrow:
        tensor = tensor.to(dtype)
    return tensor


def apply_repair(parameters: dict[str, Tensor], places: Mapping[str, Stored], repair: Repair) -> None:
    """Overwrite a model's tensors with the repaired ones."""
    for name, tensor in parameters.items():
        stored = places.get(name)
        whole = None if stored is None else repair.mended(stored.logical)
        if stored is not None and whole is not None:
            block = stored.piece.blocks[0]
            part = whole[tuple(slice(start, stop) for start, stop in block.box)]
            if block.order:
                part = part.permute(*(block.order.axes.index(axis) for axis in range(part.ndim)))
            tensor.view(-1)[: part.numel()].copy_(part.reshape(-1))  # rows of padding stay


@dataclass(slots=True)
class HiddenStateSampler:
    """Keeps the outputs of modules at some positions on the CPU."""

    at: Int[Tensor, "n"]
    itemsize: int = 0
    """Bytes of a stored parameter, for reporting progress."""
    gather: Any = None
    transposed: bool = False
    kept: dict[str, Float[Tensor, "b n d"]] = field(default_factory=dict)

    def hooked(self, modules: dict[str, nn.Module]) -> contextlib.AbstractContextManager[None]:
        return hooked(module.register_forward_hook(self._hook(name)) for name, module in modules.items())

    def _hook(self, name: str) -> Any:
        def hook(module: nn.Module, _: Any, output: Any) -> None:
            advance(sum(p.numel() * self.itemsize for p in module.parameters()))
            hidden = hidden_output(output) if self.gather is None else self.gather(hidden_output(output))
            hidden = swap_axes(hidden, transposed=self.transposed)
            self.kept[name] = hidden[:, self.at.to(hidden.device)].float().cpu()

        return hook
