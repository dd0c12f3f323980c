"""megatron-core's GPTModel for a `ModelSpec`: built for any layout, on CPU or GPU.

parallel = Parallel(tp=2, pp=2)
init(parallel)                                               # on every rank
model = build(spec, padded_vocab_size=32000, parallel=parallel, dtype=torch.float32)
load_torch_dist(model, folder)                               # of `loading`
scores = logits(model, tokens, parallel=parallel)            # of `forward`; on rank 0, None elsewhere
"""

import contextlib
from typing import Any

import torch
from torch import Tensor

from mconv.spec import ModelSpec
from mconv.train.megatron.imports import (
    GPTModel,
    TransformerBlockSubmodules,
    TransformerConfig,
    get_num_layers_to_build,
    parallel_state,
)
from mconv.train.megatron.parallel import Parallel, init, shutdown
from mconv.train.model import recompute
from mconv.train.model.attention import CoreAttention
from mconv.train.model.checks import check
from mconv.train.model.layers import NORMS, layer_spec, transformer_config
from mconv.train.model.loss import TrueVocabLoss
from mconv.train.model.meta import OnMeta
from mconv.train.model.rope import inverse_frequencies

__all__ = ["Parallel", "build", "build_chunks", "init", "parameters", "shutdown", "surplus_biases", "unwrap"]


def build(
    spec: ModelSpec,
    *,
    padded_vocab_size: int,
    parallel: Parallel,
    dtype: torch.dtype,
    chunk: int = 0,
    initialize: bool = False,
    on_meta: bool = False,
    core_attention: type = CoreAttention,
    **more: Any,
) -> torch.nn.Module:
    """Return this rank's part of megatron-core's GPTModel, on its device, in `dtype`; call `init(parallel)` before.

    Where stages interleave it is one `chunk` of the rank's several: `build_chunks` makes them all.
    Weights are NaN until loaded (what a loader forgets, the first logits show), or random with `initialize`; with
    `on_meta` they have no memory at all, for the caller to give.
    `more` overrides fields of the TransformerConfig. Raises LayoutError on sizes that cannot be shared.
    """
    check(spec, padded_vocab_size=padded_vocab_size, parallel=parallel)
    # Not `perform_initialization=False`: that also leaves out the marks by which the gradient norm knows cut weights.
    start = {} if initialize else {"init_method": _leave, "output_layer_init_method": _leave}
    config = transformer_config(spec, parallel, dtype=dtype, **start, **more)
    with OnMeta() if on_meta else contextlib.nullcontext():
        model = _module(config, spec, parallel, chunk, padded_vocab_size=padded_vocab_size, core_attention=core_attention)
    _set_positions(model, spec, dtype)
    model.compute_language_model_loss = TrueVocabLoss(spec.vocab_size)
    recompute.mend(model)
    if on_meta:
        return model
    _fill(model, spec, keep=initialize)
    return model.to(torch.device("cuda", torch.cuda.current_device())) if torch.cuda.is_available() else model


def build_chunks(spec: ModelSpec, *, parallel: Parallel, **options: Any) -> list[torch.nn.Module]:
    """Return all of this rank's parts: one, or one for each virtual stage. `options` as for `build`."""
    return [build(spec, parallel=parallel, chunk=chunk, **options) for chunk in range(parallel.vpp)]


def _module(
    config: TransformerConfig,
    spec: ModelSpec,
    parallel: Parallel,
    chunk: int,
    *,
    padded_vocab_size: int,
    core_attention: type,
) -> GPTModel:
    """Return megatron-core's module, as its constructor leaves it."""
    here = parallel_state.get_pipeline_model_parallel_rank(), chunk
    layers = TransformerBlockSubmodules(
        layer_specs=[layer_spec(config, spec, core_attention)] * get_num_layers_to_build(config, vp_stage=chunk),
        layer_norm=NORMS[spec.norm],
    )
    return GPTModel(
        config,
        layers,
        padded_vocab_size,
        spec.max_position_embeddings,
        pre_process=here == parallel.ends[0],
        post_process=here == parallel.ends[1],
        parallel_output=True,
        share_embeddings_and_output_weights=spec.tied_embeddings,
        position_embedding_type="learned_absolute" if spec.position == "learned" else "rope",
        rotary_base=spec.rope.base,
        vp_stage=chunk if parallel.vpp > 1 else None,
    )


def _set_positions(model: GPTModel, spec: ModelSpec, dtype: torch.dtype) -> None:
    """Set rope's frequencies before the first forward: megatron-core caches the angles per module."""
    if spec.position == "rope":
        model.rotary_pos_emb.inv_freq = inverse_frequencies(spec.rope, kv_channels=spec.kv_channels)
    elif model.pre_process:
        model.embedding.position_embeddings.to(dtype)  # which megatron-core makes in fp32, whatever params_dtype is


def _leave(weight: Tensor) -> Tensor:
    """Return the weight as it is: an initialisation that costs nothing."""
    return weight


def _fill(model: GPTModel, spec: ModelSpec, *, keep: bool) -> None:
    """Fill every weight with NaN unless `keep`; zero, for good, the biases that only megatron-core has."""
    without = surplus_biases(model, spec)
    for name, parameter in model.named_parameters():
        if name in without:
            parameter.data.zero_()
            parameter.requires_grad_(False)  # else training would give it a value that no HF model can hold
        elif not keep:
            parameter.data.fill_(float("nan"))


def surplus_biases(model: torch.nn.Module, spec: ModelSpec) -> set[str]:
    """Return the biases that megatron-core has because another linear has one, and that are zero in this model."""
    has = {"linear_qkv": spec.qkv_bias, "linear_proj": spec.proj_bias, "linear_fc": spec.mlp_bias}
    without = [f"{kind}" for kind, biased in has.items() if not biased]
    names = (name for name, _ in model.named_parameters() if name.endswith(".bias"))
    return {name for name in names if any(kind in name for kind in without)}


def unwrap(model: Any) -> GPTModel:
    """Return the GPTModel inside megatron-core's data-parallel wrapper, or the model itself."""
    while not isinstance(model, GPTModel):
        model = model.module
    return model


def parameters(model: torch.nn.Module) -> dict[str, Tensor]:
    """Return this rank's parameters under the names of an mp_rank file (layers numbered from 0 on each stage).

    Loaders fill these tensors in place. With tied embeddings and pp > 1 the last stage's copy of the embedding is
    `output_layer.weight`, as in the file.
    """
    return {name: parameter.data for name, parameter in unwrap(model).named_parameters()}
