"""Args of Megatron-LLM that Megatron-LM has not, and those that decide the function.

Source: epfLLM/Megatron-LLM, main of 2024 (v1.0.0 and after), `megatron/arguments.py`, `finetune.py`; what an arg does:
`megatron/model/transformer.py`; `bias_droput_fusion` is written so by `weights_conversion/hf_to_megatron.py`.
"""

from dataclasses import dataclass
from typing import Any

from mconv.convert.dialects.arguments.rows import OFF
from mconv.convert.dialects.arguments.text import names
from mconv.convert.dialects.keys import PARALLEL, SideBySide
from mconv.convert.spelling.claim import claimed
from mconv.convert.spelling.keys import (
    REQUIRED,
    Biases,
    Choice,
    Config,
    Field,
    Follows,
    Heads,
    Left,
    Named,
    NamedKey,
    take,
)
from mconv.spec import ModelSpec, Rope


@dataclass(frozen=True, slots=True)
class Ropes:
    """Rotary base, and a factor by which positions are stretched; 1: they are not."""

    names: tuple[str, ...] = ("rope_theta", "rope_scaling_factor")

    def read(self, left: Left) -> Config:
        base, factor = take(left, "rope_theta", float, 1e4), take(left, "rope_scaling_factor", float, 1.0)
        return {"rope": Rope(kind="linear" if factor != 1 else "default", base=base, factor=factor)}

    def write(self, spec: ModelSpec, out: Config) -> None:
        out |= {"rope_theta": spec.rope.base, "rope_scaling_factor": spec.rope.factor}


@dataclass(frozen=True, slots=True)
class Window(Named):
    """Keys before the query's own, which the spec counts too: its attention sees one more than the arg says."""

    def read(self, left: Left) -> Config:
        size = take(left, self.key, int, None)
        return {"sliding_window": None if size is None else size + 1}

    def write(self, spec: ModelSpec, out: Config) -> None:
        out[self.key] = spec.sliding_window - 1 if spec.sliding_window else None


def four_times(left: Left) -> Any:
    """Return the width of an MLP without a gate where no arg says it."""
    hidden = left.get("hidden_size")
    return REQUIRED if left.get("glu_activation") or type(hidden) is not int else 4 * hidden


SPEC: tuple[NamedKey, ...] = (
    #     arg                      field of the spec
    Field("num_layers",            "num_layers", int),
    Follows("encoder_num_layers",  "num_layers"),
    Field("ffn_hidden_size",       "ffn_hidden_size", int, four_times),
    Field("tie_embed_logits",      "tied_embeddings", bool, lambda left: not left.get("use_rms_norm", False)),
    Heads(names=("hidden_size", "num_attention_heads", "num_attention_heads_kv", "kv_channels")),
    Field("max_position_embeddings", "max_position_embeddings", int),
    Follows("seq_length",          "max_position_embeddings"),
    Field("layernorm_epsilon",     "norm_epsilon", float, 1e-5),
    Choice("use_rms_norm",         "norm", {True: "rms", False: "layer", None: "layer"}, False),
    Choice("glu_activation",       "activation", {"swiglu": "swiglu", None: "gelu"}, None),
    Biases("use_bias",             ("qkv_bias", "proj_bias", "mlp_bias")),
    Field("true_vocab_size",       "vocab_size", int, None),  # an arg of ours: theirs do not know it
    Choice("position_embedding_type", "position", {"rotary": "rope", 1: "rope"}, None),  # 1: the value of its enum
    SideBySide(), Ropes(), Window("sliding_window_size"),
)  # fmt: skip
"""Args that say the architecture, each read both ways."""
LAYOUT: tuple[NamedKey, ...] = (*PARALLEL, Follows("padded_vocab_size", "padded_vocab"))
FIELDS = claimed((*SPEC, *LAYOUT)) | {"model_name", "bias_gelu_fusion"}
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "use_post_ln": OFF, "apply_residual_connection_post_layernorm": OFF, "onnx_safe": OFF, "num_experts": (None, 0),
    "decoder_num_layers": (None, 0),
}  # fmt: skip
"""Args that change the function, and the values with which they do not."""
INERT = names("""
    bias_droput_fusion data_type eval_only lima_dropout load_iters metrics new_tokens scalar_loss_mask skip_iters
    tokenizer_type vocab_extra_ids_list wandb_api_key wandb_id wandb_logger wandb_name wandb_resume
""")
