"""Points within a layer, seen from outside: the outputs of its modules, in the same order for both programs.

A point is a row of the family's table (the output of its modules), or lies between two of them: `rope` (queries and keys
as attention gets them), `attention` (its output), `activation` (the input of the MLP's last linear), `layer` (what the
layer adds to the hidden states).
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, no_type_check

import torch
from jaxtyping import Int
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from mconv.convert.spelling.table import Row
from mconv.shard.axes import lengths
from mconv.shard.cut import Block
from mconv.verify.models.common import Model, hidden_output, hooked, swap_axes

BETWEEN = {True: ("rope", "attention"), False: ("activation",)}
"""Points in front of the last linear of a branch: of attention, of the MLP."""
Tell = Callable[[str, str, Tensor], None]
"""A callback: layer, point, values [b n ...] in fp32 on the CPU."""
Args = tuple[tuple[Any, ...], dict[str, Any]]


def point_of(row: Row) -> str:
    """Return the point at which a row's output is seen."""
    return row.name.removeprefix("layer.")


def points(model: Model) -> list[str]:
    """Return the points of a layer, in the order of the forward pass."""
    found = []
    for branch in model.checkpoint.family.branches(model.spec):
        *before, last = map(point_of, branch.rows)
        found += [*before, *BETWEEN[branch.attends], last]
    return [*found, "layer"]


class Watch(TorchFunctionMode):
    """Watches a model's layers while it runs, and reports the values of each point at some positions."""

    def __init__(self, model: Model, at: Int[Tensor, "n"], tell: Tell) -> None:
        super().__init__()
        self.model, self.at, self.tell = model, at, tell
        self.layer: str | None = None
        self.parts: dict[str, tuple[Tensor, int]] = {}

    @no_type_check  # called for every operation
    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        if func is torch.nn.functional.scaled_dot_product_attention and self.layer is not None:
            query, key = args[:2]
            groups = self.model.spec.num_query_groups
            key = key[:, :: key.shape[1] // groups] if key.shape[1] > groups else key
            both = torch.cat([query, key], dim=1)
            self.tell(self.layer, "rope", self._seen(both.transpose(1, 2)))
            self.tell(self.layer, "attention", self._seen(out.transpose(1, 2)))
        return out

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """Report every forward of the model within the context."""
        handles = []
        for layer, module in self.model.modules().items():
            if layer.isdigit():
                handles += [*self._inside(layer), *self._around(layer, module)]
        with self, hooked(handles):
            yield

    def _around(self, layer: str, module: nn.Module) -> Iterator[Any]:
        given: list[Tensor] = []

        def before(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            self.layer = layer
            given[:] = [hidden_of(args, kwargs)]

        def after(_: nn.Module, __: Any, output: Any) -> None:
            self.layer = None
            added = hidden_output(output) - given.pop()
            self.tell(layer, "layer", self._seen(self._batch_first(added)))

        yield module.register_forward_pre_hook(before, with_kwargs=True)
        yield module.register_forward_hook(after)

    def _inside(self, layer: str) -> Iterator[Any]:
        for branch in self.model.checkpoint.family.branches(self.model.spec):
            for row in branch.rows:
                inner, dims = self.model.modules_of_row(int(layer), row), row.output.dims(self.model.spec.sizes)
                for module, piece in inner:
                    hook = self._output(layer, point_of(row), dims, piece.blocks[0], len(inner))
                    yield module.register_forward_hook(hook)
            if not branch.attends:
                for module, _ in inner:
                    yield module.register_forward_pre_hook(self._input(layer, *BETWEEN[False]))

    def _output(self, layer: str, point: str, dims: tuple[int, ...], block: Block, parts: int) -> Any:
        def hook(_: nn.Module, __: Any, output: Any) -> None:
            given = hidden_output(output)
            bias = output[1] if isinstance(output, tuple) and len(output) > 1 else None
            values = self._seen(self._batch_first(given if bias is None else given + bias))
            if block.order:
                stored = values.unflatten(2, block.order.shape)
                values = stored.permute(0, 1, *(2 + axis for axis in block.order.axes)).flatten(2)
            if parts == 1:
                self.tell(layer, point, values)
                return
            # Parts of one row from several modules (query, key, value): reported when all have come.
            whole, come = self.parts.pop(point, (torch.empty((*values.shape[:2], *dims)), 0))
            place = (slice(None), slice(None), *(slice(*ends) for ends in block.box))
            whole[place] = values.view(*values.shape[:2], *lengths(block.box))
            if come + 1 == parts:
                self.tell(layer, point, whole.flatten(2))
            else:
                self.parts[point] = whole, come + 1

        return hook

    def _input(self, layer: str, point: str) -> Any:
        def hook(_: nn.Module, args: tuple[Any, ...]) -> None:
            self.tell(layer, point, self._seen(self._batch_first(args[0])))

        return hook

    def _batch_first(self, hidden: Tensor) -> Tensor:
        return swap_axes(hidden, transposed=self.model.transposed)

    def _seen(self, values: Tensor) -> Tensor:
        return values[:, self.at.to(values.device)].float().cpu().flatten(2)


def hidden_of(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """Return the hidden states that a layer is called with."""
    found: Tensor = kwargs["hidden_states"] if "hidden_states" in kwargs else args[0]
    return found


def with_hidden(args: tuple[Any, ...], kwargs: dict[str, Any], hidden: Tensor) -> Args:
    """Return a call's arguments with other hidden states."""
    if "hidden_states" in kwargs:
        return args, {**kwargs, "hidden_states": hidden}
    return (hidden, *args[1:]), kwargs
