"""What a layer's spec of megatron-core looks like, which depends on its version."""

import functools
from typing import Any

from mconv.train.megatron.imports import MegatronModule, ModuleSpec


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
