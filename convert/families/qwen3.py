"""Qwen3 (dense): LLaMA's weights, and a norm on each head of query and key, before they are rotated.

A head may be of any width. Source: transformers' `modeling_qwen3.py`, `configuration_qwen3.py`.
"""

from mconv.convert.families.llama import LLAMA, SHARED, A
from mconv.convert.families.qwen2 import Window
from mconv.convert.spelling.keys import Always, Biases, Field, Heads
from mconv.convert.spelling.known import COMMON
from mconv.convert.spelling.table import Family, Row

QKV = next(i for i, row in enumerate(LLAMA.rows) if row.name == "layer.qkv") + 1

QWEN3 = Family(
    name="qwen3",
    model_type="qwen3",
    architecture="Qwen3ForCausalLM",
    rows=(
        *LLAMA.rows[:QKV],
        Row("layer.q_norm", "h", "", A + "q_norm", when="qk_norm"),
        Row("layer.k_norm", "h", "", A + "k_norm", when="qk_norm"),
        *LLAMA.rows[QKV:],
    ),
    config=(
        Window(),
        *SHARED,
        #     config.json                spec
        Field("max_position_embeddings", "max_position_embeddings", int, 32768),
        Heads(groups=32, width=128),
        Biases("attention_bias",         ("qkv_bias", "proj_bias")),
        Always({"qk_norm": True}),
        *COMMON,
    ),
    base=LLAMA.base,
    headless="Qwen3Model",
    buffers=LLAMA.buffers,
)  # fmt: skip
