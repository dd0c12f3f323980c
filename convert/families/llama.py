"""LLaMA: 1, 2, 3, 3.1, 3.2, Code Llama, and whatever else calls itself `LlamaForCausalLM` (Falcon 3 does).

Axes: v vocabulary, d hidden, g query groups, q queries of a group, s its slots (q queries, one key, one value),
h head width, p the halves of the gated MLP (gate, up), f its width. Source: transformers' `modeling_llama.py`.
"""

from mconv.convert.spelling.derived import MASKS, ROTARY_BUFFERS
from mconv.convert.spelling.keys import Biases, Constant, Field, Heads, Key
from mconv.convert.spelling.known import COMMON
from mconv.convert.spelling.rope import RopeKeys
from mconv.convert.spelling.table import Family, Row
from mconv.convert.spelling.window import Window

L = "model.layers.{l}."
A, M = L + "self_attn.", L + "mlp."

SHARED: tuple[Key, ...] = (
    #     config.json           spec
    Field("num_hidden_layers",  "num_layers", int),
    Field("intermediate_size",  "ffn_hidden_size", int),
    Field("vocab_size",         "vocab_size", int),
    Field("rms_norm_eps",       "norm_epsilon", float, 1e-6),
    Field("tie_word_embeddings", "tied_embeddings", bool, False),
    RopeKeys(),
    Constant("hidden_act",      "silu", also=("swish",)),
    Constant("partial_rotary_factor", 1.0, also=(None,), emit=False),
)  # fmt: skip
"""The keys that LLaMA's descendants read just as it does."""

LLAMA = Family(
    name="llama",
    model_type="llama",
    architecture="LlamaForCausalLM",
    rows=(
        #   logical            axes         cut  Hugging Face module, and what it holds if not all of it; bias
        Row("embed",           "v d",       "v", "model.embed_tokens"),
        Row("layer.attn_norm", "d",         "",  L + "input_layernorm"),
        Row("layer.qkv",       "(g s h) d", "g", {A + "q_proj": "(g s[:q] h) d",
                                                  A + "k_proj": "(g s[q] h) d",
                                                  A + "v_proj": "(g s[-1] h) d"}, "qkv_bias"),
        Row("layer.attn_out",  "d (g q h)", "g", A + "o_proj", bias="proj_bias"),
        Row("layer.mlp_norm",  "d",         "",  L + "post_attention_layernorm"),
        Row("layer.mlp_in",    "(p f) d",   "f", {M + "gate_proj": "(p[0] f) d",
                                                  M + "up_proj": "(p[1] f) d"}, "mlp_bias"),
        Row("layer.mlp_out",   "d f",       "f", M + "down_proj", bias="mlp_bias"),
        Row("final_norm",      "d",         "",  "model.norm"),
        Row("head",            "v d",       "v", "lm_head", kind="head", unless="tied_embeddings"),
    ),
    config=(
        Window("num_hidden_layers", "max_position_embeddings"),
        *SHARED,
        #     config.json                spec
        Field("max_position_embeddings", "max_position_embeddings", int, 2048),
        Heads(),
        Biases("attention_bias",         ("qkv_bias", "proj_bias")),
        Biases("mlp_bias",               ("mlp_bias",)),
        *COMMON,
    ),
    base="model.",
    headless="LlamaModel",
    buffers=(*ROTARY_BUFFERS, *MASKS),
)  # fmt: skip
