"""What both kinds of model share: the arithmetic, what can be asked of them, hidden states kept on the way."""

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from mconv.convert.checkpoint import Checkpoint
from mconv.convert.table import Logical, Row, Stored
from mconv.shard.cut import Piece
from mconv.spec import ModelSpec
from mconv.train.megatron.parallel import Parallel
from mconv.verify.onuse import Weights
from mconv.verify.steps import advance

SAMPLE = 32
"""Positions of each row at which hidden states are kept."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Repair:
    """What to try on a model: other numbers in its spec, other tensors in the place of its own."""

    spec: Mapping[str, Any] = field(default_factory=dict)
    mended: Callable[[Logical], Tensor | None] = lambda _: None
    """The logical tensor to take, one dimension for each axis; None: the model's own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class How:
    """The arithmetic, and where it happens."""

    dtype: torch.dtype = torch.float32
    narrow: tuple[torch.dtype, ...] = ()
    """Weights are rounded to these first, one after the other: what the other side holds, where that is fewer bits."""
    streamed: bool = False
    parallel: Parallel = field(default_factory=Parallel)
    """Of a Megatron side."""
    only: frozenset[str] | None = None
    """The layers that run, of a streamed model; the others hand on what they are given."""
    repair: Repair = field(default_factory=Repair)
    """Of a streamed model on one rank."""

    @property
    def filling(self) -> torch.dtype:
        """What weights are read into: fp32 if they are rounded to `narrow` and then to another dtype, in this order."""
        return self.dtype if self.narrow in ((), (self.dtype,)) else torch.float32

    def skips(self, place: str) -> bool:
        """Whether a layer is to hand on what it is given."""
        return self.only is not None and place.isdigit() and place not in self.only

    @property
    def weights(self) -> Weights:
        """What the weights of a streamed module are."""
        return Weights(filling=self.filling, dtype=self.dtype, device=self.device)

    @property
    def device(self) -> torch.device:
        return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")


@runtime_checkable
class Scores(Protocol):
    """Logits that are there when asked for."""

    layers: dict[str, Float[Tensor, "b n d"]]
    """Hidden states behind each layer at some positions: `embed`, `0`, `1`, ..., `final_norm`."""

    def at(self, positions: Int[Tensor, "n"]) -> Float[Tensor, "b n v"]:
        """Over the true vocabulary, at some positions."""

    def chunks(self) -> Iterator[Float[Tensor, "b c v"]]:
        """Over the true vocabulary, `CHUNK` positions at a time."""


@runtime_checkable
class Model(Protocol):
    """What can be asked for logits. Every rank asks; the answer is rank 0's, None elsewhere."""

    checkpoint: Checkpoint
    spec: ModelSpec
    """The checkpoint's architecture, repaired."""
    loaded_by: str
    transposed: bool
    """Whether hidden states are [s b d] within it, not [b s d]."""

    def modules(self) -> dict[str, nn.Module]:
        """Embedding, layers and final norm, as `Scores.layers` calls them: those that are on this rank."""

    def inner(self, layer: int, row: Row) -> list[tuple[nn.Module, Piece]]:
        """The modules of a layer that compute a row of the family's table, and what part of its output each gives."""

    def run(self, tokens: Int[Tensor, "b s"], positions: Int[Tensor, "b s"] | None = None) -> Scores | None: ...

    def rest(self) -> None:
        """Free what is needed for further runs."""


def sampled(length: int, *, most: int = SAMPLE) -> Int[Tensor, "n"]:
    """`most` positions at which to look at hidden states, the last among them."""
    return torch.linspace(0, length - 1, min(most, length)).long()


def first(output: Any) -> Tensor:
    """The hidden states that a module gives."""
    found: Tensor = output[0] if isinstance(output, tuple) else output
    return found


def turned(hidden: Tensor, *, transposed: bool) -> Tensor:
    """From a model's own order of sequence and batch to [b s ...], and back again."""
    return hidden.transpose(0, 1) if transposed else hidden


@contextlib.contextmanager
def hooked(handles: Iterable[RemovableHandle]) -> Iterator[None]:
    """Hooks that are there for a while."""
    here = list(handles)
    try:
        yield
    finally:
        for handle in here:
            handle.remove()


def narrowed(parameters: dict[str, Tensor], narrow: tuple[torch.dtype, ...]) -> None:
    """Round weights in place to the values that each of `narrow` has."""
    for tensor in parameters.values() if narrow else ():
        tensor.copy_(rounded(tensor, narrow))


def rounded(tensor: Tensor, narrow: tuple[torch.dtype, ...]) -> Tensor:
    """The values that each of `narrow` has, one after the other."""
    for dtype in narrow:
        tensor = tensor.to(dtype)
    return tensor


def put(parameters: dict[str, Tensor], places: Mapping[str, Stored], repair: Repair) -> None:
    """Put mended tensors in the place of a model's own."""
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
class Keep:
    """Keeps what modules give, at some positions, on the CPU."""

    at: Int[Tensor, "n"]
    itemsize: int = 0
    """Bytes of a stored parameter, for telling how far a run has come."""
    gather: Any = None
    transposed: bool = False
    kept: dict[str, Float[Tensor, "b n d"]] = field(default_factory=dict)

    def hooked(self, modules: dict[str, nn.Module]) -> contextlib.AbstractContextManager[None]:
        return hooked(module.register_forward_hook(self._hook(name)) for name, module in modules.items())

    def _hook(self, name: str) -> Any:
        def hook(module: nn.Module, _: Any, output: Any) -> None:
            advance(sum(p.numel() * self.itemsize for p in module.parameters()))
            hidden = first(output) if self.gather is None else self.gather(first(output))
            hidden = turned(hidden, transposed=self.transposed)
            self.kept[name] = hidden[:, self.at.to(hidden.device)].float().cpu()

        return hook
