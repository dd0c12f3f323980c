"""Args of Megatron-LM that say the architecture and the layout: rows, each read both ways.

Source: Megatron-LM core_v0.16.1, `checkpointing.py` (`load_args_from_checkpoint`); its legacy model has the same args.
"""

from dataclasses import dataclass

from mconv.convert.dialects.flags import whole
from mconv.convert.dialects.keys import BUILT_IN, PARALLEL, LinearBiases, Ropes, SideBySide, Window
from mconv.convert.spelling.keys import Alias, Choice, Config, Field, Follows, Left, NamedKey, take
from mconv.spec import ModelSpec


@dataclass(frozen=True, slots=True)
class Groups:
    """Query groups, whose number counts only with a switch. Its row stands before that of the heads."""

    names: tuple[str, ...] = ("group_query_attention", "num_query_groups")

    def read(self, left: Left) -> Config:
        grouped = take(left, "group_query_attention", bool, False)
        return {"num_query_groups": take(left, "num_query_groups", int) if grouped else left.get("num_attention_heads")}

    def write(self, spec: ModelSpec, out: Config) -> None:
        out["group_query_attention"] = spec.num_query_groups != spec.num_attention_heads
        out["num_query_groups"] = spec.num_query_groups


@dataclass(frozen=True, slots=True)
class Activation:
    """Two switches: a gated MLP; and, where linears have biases, the fused GELU, which is the tanh form.

    Its row stands before that of the biases.
    """

    names: tuple[str, ...] = ("swiglu", "bias_gelu_fusion")

    def read(self, left: Left) -> Config:
        gated, biased = take(left, "swiglu", bool, False), bool(left.get("add_bias_linear"))
        fused = left.pop("bias_gelu_fusion", None)
        if gated or not biased:
            return {"activation": "swiglu" if gated else "gelu"}
        return {"activation": "gelu_tanh" if left.typed("bias_gelu_fusion", fused, bool) else "gelu"}

    def write(self, spec: ModelSpec, out: Config) -> None:
        out |= {"swiglu": spec.activation == "swiglu", "bias_gelu_fusion": spec.activation == "gelu_tanh"}


KINDS = {"rope": "rope", "alibi": "alibi", "learned_absolute": "learned"}
POSITION = Choice("position_embedding_type", "position", KINDS, None)


@dataclass(frozen=True, slots=True)
class Positions:
    """The kind of positions, which Megatron-LM of 23.04 and 23.06 says by two switches."""

    names: tuple[str, ...] = ("position_embedding_type", "use_rotary_position_embeddings")

    def read(self, left: Left) -> Config:
        rotary = take(left, "use_rotary_position_embeddings", bool, True)
        added = "learned_absolute" if left.get("add_position_embedding", True) else None
        left.setdefault("position_embedding_type", "rope" if rotary else added)
        return POSITION.read(left)

    def write(self, spec: ModelSpec, out: Config) -> None:
        POSITION.write(spec, out)
        out["use_rotary_position_embeddings"] = spec.position != "learned"


SPEC: tuple[NamedKey, ...] = (
    Groups(), Activation(), Positions(), SideBySide(),
    #     arg                             field of the spec
    Field("num_layers",                   "num_layers", int),
    Field("hidden_size",                  "hidden_size", int),
    Field("ffn_hidden_size",              "ffn_hidden_size", int),
    Field("num_attention_heads",          "num_attention_heads", int),
    Field("kv_channels",                  "kv_channels", int),
    Field("max_position_embeddings",      "max_position_embeddings", int),
    Follows("seq_length",                 "max_position_embeddings"),
    Follows("encoder_seq_length",         "max_position_embeddings"),
    Field("vocab_size",                   "vocab_size", int, None),
    Choice("normalization",               "norm", {"RMSNorm": "rms", "LayerNorm": "layer"}, "LayerNorm"),
    Alias("norm_epsilon",                 "layernorm_epsilon", spec="norm_epsilon"),  # its name from 2023 to core 0.15
    Field("layernorm_epsilon",            "norm_epsilon", float),
    Field("qk_layernorm",                 "qk_norm", bool, False),
    Choice("untie_embeddings_and_output_weights", "tied_embeddings", {False: True, True: False, None: True}, False),
    LinearBiases(default=False),
    Window("window_size", tuple),
    Ropes(stretch="rotary_seq_len_interpolation_factor", scaled="use_rope_scaling", unscaled=8.0, built_in=BUILT_IN,
          number=whole, defaults={"rotary_base": 1e4, "use_rope_scaling": False, "rope_scaling_factor": 8.0}),
)  # fmt: skip
"""Megatron-LM knows no args for `built_in`: written into ours, and read back where they are."""

LAYOUT: tuple[NamedKey, ...] = (*PARALLEL, Field("padded_vocab_size", "padded_vocab", int))

STAGES = (
    Field("decoder_first_pipeline_num_layers", "first", int, None),
    Field("decoder_last_pipeline_num_layers", "last", int, None),
    Field("account_for_embedding_in_pipeline_split", "embedding", bool, False),
    Field("account_for_loss_in_pipeline_split", "loss", bool, False),
)
"""Args with which stages hold different numbers of layers: fields of `Uneven`."""
