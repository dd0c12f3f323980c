"""Mistral 7B: LLaMA's weights; attention may look back only so far, and no linear has a bias.

Source: transformers' `configuration_mistral.py`, whose defaults for absent keys are those of the first Mistral 7B.
"""

from mconv.convert.families.llama import LLAMA, SHARED
from mconv.convert.spelling.keys import Field, Heads
from mconv.convert.spelling.known import COMMON
from mconv.convert.spelling.table import Family
from mconv.convert.spelling.window import Window

MISTRAL = Family(
    name="mistral",
    model_type="mistral",
    architecture="MistralForCausalLM",
    rows=LLAMA.rows,
    config=(
        Window("num_hidden_layers", "max_position_embeddings", default=4096, known=True),
        *SHARED,
        #     config.json                spec
        Field("max_position_embeddings", "max_position_embeddings", int, 4096 * 32),
        Heads(groups=8),
        *COMMON,
    ),
    base=LLAMA.base,
    headless="MistralModel",
    buffers=LLAMA.buffers,
)  # fmt: skip
