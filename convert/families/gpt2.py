"""GPT-2, and what Megatron trains by default: learned positions, LayerNorm, GELU, biases, a tied head.

Hugging Face stores its linears as `Conv1D`: input before output, the reverse of everybody else; and fused QKV not head by
head, but all queries, all keys, all values. Axes as in `llama.py`; m positions. Source: transformers' `modeling_gpt2.py`.
"""

from dataclasses import dataclass

from mconv.convert.spelling.keys import Alias, Always, Choice, Config, Constant, Field, Kept, Left, take
from mconv.convert.spelling.known import COMMON
from mconv.convert.spelling.table import Family, Row
from mconv.convert.spelling.window import Window
from mconv.errors import ConfigError
from mconv.spec import ModelSpec

L = "transformer.h.{l}."
A, M = L + "attn.", L + "mlp."


@dataclass(frozen=True, slots=True)
class Heads:
    """Heads, each with a key and a value of its own; and the MLP's width, which is four times hidden by default."""

    def read(self, left: Left) -> Config:
        hidden, heads = take(left, "n_embd", int), take(left, "n_head", int)
        if heads < 1 or hidden % heads:
            raise ConfigError(f"config.json: n_embd {hidden} is not a multiple of n_head {heads}")
        return {
            "hidden_size": hidden,
            "num_attention_heads": heads,
            "num_query_groups": heads,
            "kv_channels": hidden // heads,
            "ffn_hidden_size": take(left, "n_inner", int, 4 * hidden),
        }

    def write(self, spec: ModelSpec, out: Config) -> None:
        out["n_embd"] = spec.hidden_size
        out["n_head"] = spec.num_attention_heads
        out["n_inner"] = spec.ffn_hidden_size


GPT2 = Family(
    name="gpt2",
    model_type="gpt2",
    architecture="GPT2LMHeadModel",
    rows=(
        #   logical            axes         cut  Hugging Face module, and how it orders the tensor
        Row("embed",           "v d",       "v", "transformer.wte"),
        Row("positions",       "m d",       "",  "transformer.wpe"),
        Row("layer.attn_norm", "d",         "",  L + "ln_1", bias="norm_bias"),
        Row("layer.qkv",       "(g s h) d", "g", {A + "c_attn": "d (s g h)"}, "qkv_bias"),
        Row("layer.attn_out",  "d (g q h)", "g", {A + "c_proj": "(g q h) d"}, "proj_bias"),
        Row("layer.mlp_norm",  "d",         "",  L + "ln_2", bias="norm_bias"),
        Row("layer.mlp_in",    "f d",       "f", {M + "c_fc": "d f"}, "mlp_bias"),
        Row("layer.mlp_out",   "d f",       "f", {M + "c_proj": "f d"}, "mlp_bias"),
        Row("final_norm",      "d",         "",  "transformer.ln_f", bias="norm_bias"),
        Row("head",            "v d",       "v", "lm_head", kind="head", unless="tied_embeddings"),
    ),
    config=(
        Alias("hidden_size", "n_embd"),
        Alias("max_position_embeddings", "n_positions"),
        Alias("num_attention_heads", "n_head"),
        Alias("num_hidden_layers", "n_layer"),
        Window("n_layer", "n_positions"),
        #     config.json              spec
        Field("n_layer",               "num_layers", int),
        Field("vocab_size",            "vocab_size", int),
        Field("n_positions",           "max_position_embeddings", int, 1024),
        Field("layer_norm_epsilon",    "norm_epsilon", float, 1e-5),
        Field("tie_word_embeddings",   "tied_embeddings", bool, True),
        Heads(),
        Choice("activation_function",  "activation",
               {"gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh", "gelu": "gelu"}, "gelu_new"),
        Constant("scale_attn_weights", True, emit=False),
        Constant("scale_attn_by_inverse_layer_idx", False, emit=False),
        Constant("reorder_and_upcast_attn", False, also=(True,), emit=False),  # a way to round, not what is computed
        Always({"norm": "layer", "position": "learned", "qkv_bias": True, "proj_bias": True, "mlp_bias": True}),
        Kept(("n_ctx", "attn_pdrop", "embd_pdrop", "resid_pdrop", "summary_type", "summary_use_proj",
              "summary_activation", "summary_proj_to_labels", "summary_first_dropout"),
             emit={"attn_pdrop": 0.0, "embd_pdrop": 0.0, "resid_pdrop": 0.0}),
        *COMMON,
    ),
    base="transformer.",
    headless="GPT2Model",
)  # fmt: skip
