"""Differences between versions of megatron-core in a layer's spec and a config's fields."""

import dataclasses
import functools
from typing import Any

from mconv.train.megatron.imports import MegatronModule, ModuleSpec, TransformerConfig


def set_mlp(layer: ModuleSpec, *, ffn_hidden_size: int, activation: type[MegatronModule]) -> None:
    """Give a layer's MLP its width, which it would warn to have guessed, and the activation that it builds for itself.

    Up to 0.17 the MLP's spec is a ModuleSpec, from 0.18 on a partial call that builds it.
    """
    mlp: Any = layer.submodules.mlp
    if isinstance(mlp, functools.partial):
        mlp.keywords["submodules"].activation_func = activation
        layer.submodules.mlp = functools.partial(mlp, ffn_hidden_size=ffn_hidden_size)
    else:
        mlp.submodules.activation_func = activation
        mlp.params["ffn_hidden_size"] = ffn_hidden_size


def no_cuda_graphs() -> dict[str, Any]:
    """Return the field of TransformerConfig, and its value, that captures nothing; its default is deprecated everywhere.

    It is `cuda_graph_scope` up to 0.17, and `cuda_graph_modules` from 0.18 on, where the old name warns.
    """
    names = {field.name for field in dataclasses.fields(TransformerConfig)}
    return {"cuda_graph_modules" if "cuda_graph_modules" in names else "cuda_graph_scope": []}
