"""Falcon's layer, which megatron-core lacks: attention and MLP side by side, both added to what they read."""

from typing import Any

from jaxtyping import Float
from torch import Tensor

from mconv.train.megatron.imports import IdentityOp, TransformerLayer


class ParallelLayer(TransformerLayer):
    """The layer x + attention(norm(x)) + mlp(norm(x)), with one norm, or two if `pre_mlp_layernorm` is another.

    Parameters, their names and their cuts are those of megatron-core's layer. Each of the two branches is summed over
    the tensor-parallel ranks by its own last linear (under sequence parallelism: summed and scattered), as in a layer
    where one follows the other, so they may simply be added; and each adds its own bias once, after that sum.
    """

    def forward(self, hidden_states: Float[Tensor, "s b d"], **kwargs: Any) -> tuple[Float[Tensor, "s b d"], None]:
        """Compute one layer; of TransformerBlock's `kwargs` only those of attention are used."""
        wanted = {name: kwargs.get(name) for name in ("attention_mask", "rotary_pos_emb", "packed_seq_params")}
        normed = self.input_layernorm(hidden_states)
        shared = isinstance(self.pre_mlp_layernorm, IdentityOp)
        attention, attention_bias = self.self_attention(normed, **wanted)
        mlp, mlp_bias = self.mlp(normed if shared else self.pre_mlp_layernorm(hidden_states))
        bias = None if attention_bias is None else attention_bias + mlp_bias
        add = self.mlp_bda(self.training, self.config.bias_dropout_fusion)
        return add((mlp + attention, bias), hidden_states, self.hidden_dropout), None
