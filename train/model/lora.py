"""LoRA on megatron-core's fused and cut linears: exactly PEFT's adapters, one for each of Hugging Face's linears.

An adapter is a child of the layer, not of the linear, so that every name and cut of the model itself stays. What it adds
is put on the linear's output by a hook. Its two factors are cut as the linear is: behind a linear that is cut by its
outputs B is cut and A whole on every rank, behind one that is cut by its inputs the other way round; only what passes
between them, as wide as the rank of the adapter, travels between ranks.
"""

import contextlib
import functools
import hashlib
import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from mconv.convert.dialects import mcore as names
from mconv.convert.peft.adapter import padded
from mconv.convert.peft.lora import FACTORS, Linear, Settings, linears
from mconv.convert.spelling.table import Family
from mconv.spec import ModelSpec
from mconv.train.megatron.imports import (
    TransformerConfig,
    make_sharded_tensors_for_checkpoint,
    parallel_state,
    tensor_parallel,
)
from mconv.train.model.recompute import let_gradients_through

Start = Callable[[Linear, int, str], Tensor]
"""The whole of a linear's factor ("A" or "B") in a layer, at the start of a run, of that module's own rank.

It is asked for where a module has an adapter. One without stays at zero, as does what fills a lower rank up.
"""


def attach(model: Any, settings: Settings, *, family: Family, spec: ModelSpec, start: Start) -> None:
    """Freeze a (part of a) GPTModel, and give each layer its adapters, filled by `start`."""
    model.requires_grad_(False)
    known = linears(family, spec)
    for layer in model.decoder.layers:
        number = layer.layer_number - 1
        adapters = Adapters(layer.config, [known[name] for name in settings.targets], settings, spec.sizes, number)
        adapters.fill(start, number)
        layer.add_module("lora", adapters)
        for row in dict.fromkeys(linear.row.name for linear in adapters.linears.values()):
            module = layer.get_submodule(names.module_of(row))
            parts = [linear for linear in known.values() if linear.row.name == row]
            module.register_forward_hook(functools.partial(_add, adapters, parts))
    if model.pre_process:
        let_gradients_through(model.embedding)


def fresh(settings: Settings, sizes: dict[str, int], seed: int) -> Start:
    """Return PEFT's initialisation: B zero, A uniform by its inputs, seeded by seed, layer and name alone."""

    def start(linear: Linear, layer: int, factor: str) -> Float[Tensor, "rows columns"]:
        whole = torch.zeros(linear.shape(factor, rank=settings.rank, sizes=sizes), device="cpu")
        if factor == "A":
            digest = hashlib.sha256(f"{seed} {linear.key(layer, factor)}".encode()).digest()
            source = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little"))
            torch.nn.init.kaiming_uniform_(whole, a=math.sqrt(5), generator=source)
        return whole

    return start


def _add(
    adapters: "Adapters", parts: list[Linear], module: torch.nn.Module, inputs: tuple[Tensor, ...], made: Any
) -> Any:
    """Return a fused linear's output with what the adapters of its parts add: a forward hook."""
    output, bias = made
    return output + adapters(inputs[0], parts, output), bias


class Adapters(torch.nn.ModuleDict):
    """The adapters of one layer, by the name of their linear.

    megatron-core saves the tensors of all layers as one, so every layer has factors of the same shape: of the largest
    rank. What a layer has less of is zero, and stays zero.
    """

    def __init__(
        self, config: TransformerConfig, targets: list[Linear], settings: Settings, sizes: dict[str, int], layer: int
    ) -> None:
        self.linears = {linear.slot: linear for linear in targets}
        self.ranks = {name: settings.rank_of(linear.at(layer)) for name, linear in self.linears.items()}
        self.width = settings.width
        self.sizes, self.tp = sizes, config.tensor_model_parallel_size
        super().__init__({name: Factors(config, linear, settings, sizes, layer) for name, linear in self.linears.items()})

    def forward(
        self, x: Float[Tensor, "s b inputs"], parts: list[Linear], like: Float[Tensor, "t b rows"]
    ) -> Float[Tensor, "t b rows"]:
        """Return what the adapters of a fused linear's parts add to its output, which `like` is."""
        if parts[0].parted is None:
            delta: Tensor = self[parts[0].slot](x)
            return self._share(delta) if parts[0].column and not parts[0].even(self.sizes, self.tp) else delta
        cut_evenly = parts[0].even(self.sizes, self.tp)
        sizes = local(parts[0], self.sizes, self.tp) if cut_evenly else self.sizes
        axis = parts[0].axes.groups[0].index(parts[0].parted)
        pieces = []
        for part in parts:
            dims = part.dims(sizes)
            flat = self[part.slot](x) if part.slot in self else like.new_zeros(1).expand(*like.shape[:2], math.prod(dims))
            pieces.append(flat.unflatten(-1, dims))
        delta = torch.cat(pieces, dim=2 + axis).flatten(2)
        return delta if cut_evenly else self._share(delta)

    @staticmethod
    def _share(delta: Float[Tensor, "s b all_rows"]) -> Float[Tensor, "s b rows"]:
        """Return this rank's rows of a whole output; its gradient is gathered whole again."""
        shared: Tensor = tensor_parallel.scatter_to_tensor_model_parallel_region(delta)
        return shared

    @torch.no_grad()
    def fill(self, start: Start, layer: int) -> None:
        """Take this rank's share of each whole factor."""
        for name, linear in self.linears.items():
            for factor in FACTORS:
                mine = getattr(self[name], factor)
                if not self.ranks[name]:
                    mine.zero_()
                    continue
                axis = linear.cut_axis(factor, self.sizes, self.tp)
                whole = padded(factor, start(linear, layer, factor), self.width)
                rank = parallel_state.get_tensor_model_parallel_rank()
                mine.copy_(whole if axis is None else whole.chunk(self.tp, axis)[rank])

    def sharded_state_dict(
        self, prefix: str = "", sharded_offsets: Any = (), metadata: Mapping[str, Any] | None = None
    ) -> dict[str, Any]:
        """Return the state in the form that megatron-core asks of a module."""
        axes = {f"{name}.{factor}": linear.cut_axis(factor, self.sizes, self.tp)
                for name, linear in self.linears.items() for factor in FACTORS}  # fmt: skip
        groups = {
            "tp_group": parallel_state.get_tensor_model_parallel_group(),
            "dp_cp_group": parallel_state.get_data_parallel_group(with_context_parallel=True),
        }
        cut = {name: axis for name, axis in axes.items() if axis is not None}
        state = self.state_dict(keep_vars=True)
        made: dict[str, Any] = make_sharded_tensors_for_checkpoint(state, prefix, cut, sharded_offsets, **groups)
        return made


class Factors(torch.nn.Module):
    """One adapter: scale * B A dropout(x), of this rank's share of A or of B."""

    A: Tensor
    B: Tensor

    def __init__(
        self, config: TransformerConfig, linear: Linear, settings: Settings, sizes: dict[str, int], layer: int
    ) -> None:
        super().__init__()
        self.column, self.scale, self.dropout = linear.column, settings.scale_of(linear.at(layer)), settings.dropout
        self.sequence_parallel = config.sequence_parallel
        self.whole = self.column and not linear.even(sizes, config.tensor_model_parallel_size)
        for factor in FACTORS:
            setattr(self, factor, _parameter(config, linear, factor, settings.width, sizes))

    def forward(self, x: Float[Tensor, "s b inputs"]) -> Float[Tensor, "t b outputs"]:
        """Return what it adds. Under sequence parallelism `x` or the result has this rank's positions only."""
        narrow = torch.nn.functional.linear(self._dropped(x), self.A) * self.scale
        across = self._to_columns if self.column else self._from_rows
        return torch.nn.functional.linear(across(narrow), self.B)

    def _to_columns(self, narrow: Float[Tensor, "s b r"]) -> Float[Tensor, "t b r"]:
        """Return the same on all ranks, each of which computes its own outputs from it: their gradients are summed.

        Not where each makes all outputs (`whole`): then each has the whole gradient already.
        """
        made: Tensor
        if self.sequence_parallel:
            made = tensor_parallel.gather_from_sequence_parallel_region(
                narrow, tensor_parallel_output_grad=not self.whole
            )
        else:
            made = narrow if self.whole else tensor_parallel.copy_to_tensor_model_parallel_region(narrow)
        return made

    def _from_rows(self, narrow: Float[Tensor, "s b r"]) -> Float[Tensor, "t b r"]:
        """Return the sum over the ranks, each of which has seen its own inputs."""
        made: Tensor
        if self.sequence_parallel:
            made = tensor_parallel.reduce_scatter_to_sequence_parallel_region(narrow)
        else:
            made = tensor_parallel.reduce_from_tensor_model_parallel_region(narrow)
        return made

    def _dropped(self, x: Float[Tensor, "s b inputs"]) -> Float[Tensor, "s b inputs"]:
        """Apply dropout, alike on ranks with the same `x`, else by each rank's own generator."""
        if not (self.training and self.dropout):
            return x
        # Under sequence parallelism the whole block draws from that generator, and it must not be forked twice.
        forked = not (self.column or self.sequence_parallel)
        with tensor_parallel.get_cuda_rng_tracker().fork() if forked else contextlib.nullcontext():
            return torch.nn.functional.dropout(x, self.dropout)


def local(linear: Linear, sizes: dict[str, int], tp: int) -> dict[str, int]:
    """Return the sizes of a rank's share."""
    return {**sizes, linear.row.cut: sizes[linear.row.cut] // tp}


def _parameter(
    config: TransformerConfig, linear: Linear, factor: str, rank: int, sizes: dict[str, int]
) -> torch.nn.Parameter:
    """Return this rank's share of a factor, marked for megatron-core: for the gradient norm, and its sum over ranks."""
    tp = config.tensor_model_parallel_size
    shape, axis = linear.share(factor, rank=rank, sizes=sizes, tp=tp), linear.cut_axis(factor, sizes, tp)
    made = torch.nn.Parameter(torch.empty(shape, dtype=config.params_dtype, device=torch.cuda.current_device()))
    if axis is not None:
        tensor_parallel.set_tensor_model_parallel_attributes(made, True, axis, 1)
    # A before the gather, B after the scatter: they have seen this rank's positions only.
    seen_a_share = factor == ("A" if linear.column else "B")
    made.sequence_parallel = config.sequence_parallel and seen_a_share  # type: ignore[attr-defined]
    return made
