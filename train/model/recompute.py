"""Recompute activations by megatron-core, patched where it would lose gradients or never end."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from mconv.spec import ModelSpec
from mconv.train.config import TrainConfig
from mconv.train.megatron.imports import tensor_parallel
from mconv.train.megatron.parallel import Parallel


def options(config: TrainConfig) -> dict[str, Any]:
    """Return the fields of megatron-core's TransformerConfig."""
    kind = config.recompute_granularity
    if kind == "full":
        return {
            "recompute_granularity": kind,
            "recompute_method": config.recompute_method,
            "recompute_num_layers": config.recompute_num_layers,
        }
    if kind == "selective":
        return {"recompute_granularity": kind, "recompute_modules": list(config.recompute_modules or ["core_attn"])}
    return {}


def problems(config: TrainConfig, parallel: Parallel, spec: ModelSpec) -> list[str]:
    """Return the chunks whose layers the recomputed units do not divide: megatron-core would run past their end."""
    if (config.recompute_granularity, config.recompute_method) != ("full", "uniform"):
        return []
    try:
        counts = sorted({len(layers) for layers in parallel.stages(spec.num_layers).values()})
    except ValueError:  # told elsewhere
        return []
    size = config.recompute_num_layers
    return [
        f"recompute_num_layers {size} does not divide a chunk's {count} layers; take a divisor, or recompute_method block"
        for count in counts
        if count % size
    ]


def mend(model: Any) -> None:
    """Make megatron-core's recomputation hold for every model: frozen embeddings, MLPs with biases."""
    if not model.config.recompute_granularity:
        return
    if model.pre_process:
        let_gradients_through(model.embedding)
    for layer in model.decoder.layers:
        if layer.recompute_mlp:
            layer.recompute_mlp = False
            layer.mlp.forward = partial(_again, layer.mlp.forward)


def let_gradients_through(embedding: torch.nn.Module) -> None:
    """Let what the embedding hands on ask for a gradient even where the embedding itself is frozen.

    What is recomputed runs backward only if its *input* asks for one: else every weight in it would silently get none.
    """
    embedding.register_forward_hook(lambda _, __, output: output if output.requires_grad else output.requires_grad_())


def _again(
    mlp: Callable[..., tuple[Tensor, Tensor | None]], hidden: Float[Tensor, "s b d"], **options: Any
) -> tuple[Float[Tensor, "s b d"], Float[Tensor, " d"] | None]:
    """Return an MLP's output, computed again in the backward pass, and its bias.

    megatron-core has the bias, a parameter, among what it computes again: its backward pass would then never end.
    """
    bias: Tensor | None = None

    def output(hidden: Tensor) -> Tensor:
        nonlocal bias
        out, bias = mlp(hidden, **options)
        return out

    return tensor_parallel.checkpoint(output, False, hidden), bias
