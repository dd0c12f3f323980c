"""megatron-core's config and layer for a `ModelSpec`."""

import functools
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from mconv.spec import ModelSpec
from mconv.train.megatron.imports import (
    IdentityOp,
    MegatronModule,
    ModuleSpec,
    TransformerConfig,
    get_gpt_layer_local_spec,
    quiet,
)
from mconv.train.megatron.parallel import Parallel
from mconv.train.megatron.specs import no_cuda_graphs, set_mlp
from mconv.train.model.attention import CoreAttention, LayerNorm, RMSNorm
from mconv.train.model.elementwise import swiglu
from mconv.train.model.falcon import ParallelLayer

NORMS = {"rms": RMSNorm, "layer": LayerNorm}
ACTIVATIONS = {
    "swiglu": torch.nn.functional.silu,
    "gelu": torch.nn.functional.gelu,
    "gelu_tanh": functools.partial(torch.nn.functional.gelu, approximate="tanh"),
}


class SwiGLU(MegatronModule):
    """The module that megatron-core asks for, around `elementwise.swiglu`; it has no weights."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__(config=config)

    def forward(self, halves: Float[Tensor, "*rows gate_up"]) -> Float[Tensor, "*rows f"]:
        """Return silu(gate) * up."""
        return swiglu(halves)


def transformer_config(spec: ModelSpec, parallel: Parallel, *, dtype: torch.dtype, **more: Any) -> TransformerConfig:
    """Return megatron-core's config for `spec`: no dropout, no fusion that needs Transformer Engine or Apex.

    megatron-core has linear biases on all four linears or on QKV alone; those that `spec` lacks, `build` makes zero.
    `more` overrides its fields.
    """
    uneven, interleaved = parallel.uneven, parallel.vpp > 1
    fields = {
        "num_layers": spec.num_layers,
        "hidden_size": spec.hidden_size,
        "ffn_hidden_size": spec.ffn_hidden_size,
        "num_attention_heads": spec.num_attention_heads,
        "num_query_groups": spec.num_query_groups,
        "kv_channels": spec.kv_channels,
        "layernorm_epsilon": spec.norm_epsilon,
        "normalization": NORMS[spec.norm].__name__,
        "gated_linear_unit": spec.activation == "swiglu",
        "activation_func": ACTIVATIONS[spec.activation],
        "use_te_activation_func": spec.activation == "swiglu",  # megatron-core's word for one of the layer's own: ours
        "window_size": (spec.sliding_window - 1, 0) if spec.sliding_window else None,
        "qk_layernorm": spec.qk_norm,
        "add_bias_linear": spec.proj_bias or spec.mlp_bias,
        "add_qkv_bias": spec.qkv_bias,
        "hidden_dropout": 0.0,
        "attention_dropout": 0.0,
        "tensor_model_parallel_size": parallel.tp,
        "pipeline_model_parallel_size": parallel.pp,
        "virtual_pipeline_model_parallel_size": parallel.vpp if interleaved else None,
        "num_layers_in_first_pipeline_stage": uneven.first,
        "num_layers_in_last_pipeline_stage": uneven.last,
        "account_for_embedding_in_pipeline_split": uneven.embedding,
        "account_for_loss_in_pipeline_split": uneven.loss,
        # Two stages that interleave send each other two tensors at once: in one batch they would be mixed up.
        "overlap_p2p_comm": interleaved,
        "batch_p2p_comm": not interleaved,
        "sequence_parallel": parallel.sequence_parallel,
        "params_dtype": dtype,
        "pipeline_dtype": dtype,
        "bf16": dtype == torch.bfloat16,
        "fp16": dtype == torch.float16,
        "bias_activation_fusion": False,
        "bias_dropout_fusion": False,
        "masked_softmax_fusion": False,
        "gradient_accumulation_fusion": False,
        "apply_rope_fusion": False,
        **no_cuda_graphs(),
    }
    with quiet():
        return TransformerConfig(**{**fields, **more})


def layer_spec(config: TransformerConfig, spec: ModelSpec, core_attention: type = CoreAttention) -> ModuleSpec:
    """Return megatron-core's local layer, or Falcon's in its place, with our norm and a core attention in it."""
    layer = get_gpt_layer_local_spec(normalization=config.normalization)
    set_mlp(layer, ffn_hidden_size=config.ffn_hidden_size, activation=SwiGLU)
    layer.submodules.input_layernorm = layer.submodules.pre_mlp_layernorm = NORMS[spec.norm]
    attention = layer.submodules.self_attention.submodules
    attention.core_attention = core_attention
    if spec.qk_norm:
        attention.q_layernorm = attention.k_layernorm = NORMS[spec.norm]
    if spec.parallel_attention:
        layer.module = ParallelLayer
    if spec.shared_norm:
        layer.submodules.pre_mlp_layernorm = IdentityOp
    return layer
