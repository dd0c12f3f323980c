"""Falcon: 7B, 40B, 180B, Falcon2 11B and falcon-rw, all `FalconForCausalLM`. (Falcon 3 is a LLaMA.)

Which of them a model is, four keys say: with `new_decoder_architecture` attention and MLP stand side by side, behind two
norms or one; without it they do so if `parallel_attn`, behind one norm. Query, key and value are stored fused, group by
group, as the logical tensor is. Axes as in `llama.py`. Source: transformers' `modeling_falcon.py`.
"""

from dataclasses import dataclass

from mconv.convert.spelling.derived import MASKS, ROTARY_BUFFERS
from mconv.convert.spelling.keys import Alias, Always, Biases, Choice, Config, Constant, Field, Kept, Left, take
from mconv.convert.spelling.known import COMMON
from mconv.convert.spelling.rope import RopeKeys
from mconv.convert.spelling.table import Family, Row
from mconv.convert.spelling.window import Window
from mconv.errors import ConfigError
from mconv.spec import ModelSpec, Rope

L = "transformer.h.{l}."
A, M = L + "self_attention.", L + "mlp."


@dataclass(frozen=True, slots=True)
class Heads:
    """Heads and query groups, whose number is said in one of three ways; a head is as wide as they make it."""

    def read(self, left: Left) -> Config:
        new = take(left, "new_decoder_architecture", bool, False)
        shared = take(left, "multi_query", bool, True) and not new
        hidden = take(left, "hidden_size", int)
        heads = take(left, "num_attention_heads", int)
        groups = take(left, "num_kv_heads", int, heads)
        if not (new or shared or groups == heads):
            raise ConfigError(
                f"config.json: num_kv_heads is {groups} for {heads} heads, but without new_decoder_architecture or "
                "multi_query each head has a key and a value of its own"
            )
        if heads < 1 or hidden % heads:
            raise ConfigError(f"config.json: hidden_size {hidden} is not a multiple of num_attention_heads {heads}")
        return {
            "hidden_size": hidden,
            "num_attention_heads": heads,
            "num_query_groups": 1 if shared else groups,
            "kv_channels": hidden // heads,
            "ffn_hidden_size": take(left, "ffn_hidden_size", int, 4 * hidden),
            **_order(left, new=new),
        }

    def write(self, spec: ModelSpec, out: Config) -> None:
        single, each = spec.num_query_groups == 1, spec.num_query_groups == spec.num_attention_heads
        new = spec.parallel_attention and not (spec.shared_norm and (single or each))
        out["hidden_size"] = spec.hidden_size
        out["ffn_hidden_size"] = spec.ffn_hidden_size
        out["num_attention_heads"] = spec.num_attention_heads
        out["num_kv_heads"] = spec.num_query_groups if new else spec.num_attention_heads
        out["new_decoder_architecture"] = new
        out["multi_query"] = single
        out["parallel_attn"] = spec.parallel_attention
        out["num_ln_in_parallel_attn"] = 2 - spec.shared_norm if new else None


RUNNABLE = {(True, True): (1, 2), (True, False): (), (False, True): (1,), (False, False): (1, 2)}
"""new_decoder_architecture, parallel_attn: the values of num_ln_in_parallel_attn with which transformers can run it."""


def _order(left: Left, *, new: bool) -> Config:
    """Side by side or one after the other, and behind how many norms: only what transformers can run."""
    parallel = take(left, "parallel_attn", bool, True)
    norms = take(left, "num_ln_in_parallel_attn", int, 2 if new else 1)
    if norms not in RUNNABLE[new, parallel]:
        raise ConfigError(
            f"config.json: new_decoder_architecture {new}, parallel_attn {parallel} and num_ln_in_parallel_attn {norms} "
            "describe no model that transformers can run"
        )
    return {"parallel_attention": parallel, "shared_norm": parallel and norms == 1}


@dataclass(frozen=True, slots=True)
class Positions:
    """ALiBi, or rotary embedding: with ALiBi the rotary keys say nothing."""

    def read(self, left: Left) -> Config:
        alibi = take(left, "alibi", bool, False)
        rope = RopeKeys().read(left)["rope"]
        if alibi and rope.kind != "default":
            raise ConfigError(
                f"config.json: alibi is true, so there is nothing that rope scaling {rope.kind!r} could scale"
            )
        return {"position": "alibi", "rope": Rope()} if alibi else {"position": "rope", "rope": rope}

    def write(self, spec: ModelSpec, out: Config) -> None:
        out["alibi"] = spec.position == "alibi"
        RopeKeys().write(spec, out)


FALCON = Family(
    name="falcon",
    model_type="falcon",
    architecture="FalconForCausalLM",
    rows=(
        #   logical            axes         cut  Hugging Face module, its bias, and which models call it so
        Row("embed",           "v d",       "v", "transformer.word_embeddings"),
        Row("layer.attn_norm", "d",         "",  L + "input_layernorm", bias="norm_bias", unless="two_norms"),
        Row("layer.attn_norm", "d",         "",  L + "ln_attn", bias="norm_bias", when="two_norms"),
        Row("layer.qkv",       "(g s h) d", "g", A + "query_key_value", bias="qkv_bias"),
        Row("layer.attn_out",  "d (g q h)", "g", A + "dense", bias="proj_bias"),
        Row("layer.mlp_norm",  "d",         "",  L + "post_attention_layernorm", bias="norm_bias",
            unless="parallel_attention"),
        Row("layer.mlp_norm",  "d",         "",  L + "ln_mlp", bias="norm_bias", when="two_norms"),
        Row("layer.mlp_in",    "f d",       "f", M + "dense_h_to_4h", bias="mlp_bias"),
        Row("layer.mlp_out",   "d f",       "f", M + "dense_4h_to_h", bias="mlp_bias"),
        Row("final_norm",      "d",         "",  "transformer.ln_f", bias="norm_bias"),
        Row("head",            "v d",       "v", "lm_head", kind="head", unless="tied_embeddings"),
    ),
    config=(
        Window("num_hidden_layers", "max_position_embeddings"),
        Alias("n_embed", "hidden_size"),
        Positions(),
        Constant("partial_rotary_factor", 1.0, also=(None,), emit=False),
        #     config.json                spec
        Field("num_hidden_layers",       "num_layers", int),
        Field("vocab_size",              "vocab_size", int),
        Field("max_position_embeddings", "max_position_embeddings", int, 2048),
        Field("layer_norm_epsilon",      "norm_epsilon", float, 1e-5),
        Field("tie_word_embeddings",     "tied_embeddings", bool, True),
        Heads(),
        Biases("bias",                   ("qkv_bias", "proj_bias", "mlp_bias")),
        Choice("activation",             "activation", {"gelu": "gelu", "gelu_pytorch_tanh": "gelu_tanh"}, "gelu"),
        Constant("apply_residual_connection_post_layernorm", False, emit=False),
        Always({"norm": "layer"}),
        Kept(("hidden_dropout", "ff_factor", "auto_map"), emit={"hidden_dropout": 0.0}),
        *COMMON,
    ),
    base="transformer.",
    headless="FalconModel",
    buffers=(*ROTARY_BUFFERS, *MASKS),
    hub_code=r"([\w.-]+/[\w.-]+--)?(configuration|modeling)_falcon\.Falcon\w+",
)  # fmt: skip
