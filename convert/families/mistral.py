"""Mistral 7B: LLaMA's weights; attention may look back only so far, and no linear has a bias.

Source: transformers' `configuration_mistral.py`, whose defaults for absent keys are those of the first Mistral 7B.
"""

from mconv.convert.families.llama import LLAMA, SHARED
from mconv.convert.keys import Field, Heads
from mconv.convert.table import Family

MISTRAL = Family(
    name="mistral",
    model_type="mistral",
    architecture="MistralForCausalLM",
    rows=LLAMA.rows,
    config=(
        *SHARED,
        #     config.json                spec
        Field("max_position_embeddings", "max_position_embeddings", int, 4096 * 32),
        Field("sliding_window",          "sliding_window", int, 4096, null=True),
        Heads(groups=8),
    ),
    ignored_weights=LLAMA.ignored_weights,
)  # fmt: skip
