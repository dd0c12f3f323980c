"""The table of each program's args: put together from what the modules beside this one name."""

from mconv.convert.dialects.arguments import bridge, config, function, megatron_llm, megatron_lm, running, training
from mconv.convert.dialects.arguments.rows import Arguments
from mconv.convert.spelling.claim import claimed

FIELDS = claimed((*megatron_lm.SPEC, *megatron_lm.LAYOUT, *megatron_lm.STAGES)) | {
    "tokenizer_type", "pipeline_model_parallel_layout",
}  # fmt: skip
"""Args that `dialects/mcore.py` reads."""
INERT = config.CONFIG.union(
    training.TRAINING, training.DATA, training.CHECKPOINTS, running.RANKS, running.LOGS, running.ANSWERS, running.OTHERS,
    running.SET_IN_CODE,
)  # fmt: skip

MEGATRON_LM = Arguments(
    program="Megatron-LM",
    fields=FIELDS,
    neutral=function.WRITTEN | function.READ,
    meanings=function.MEANINGS,
    conditions=function.CONDITIONS,
    inert=INERT - FIELDS,
)
"""Megatron-LM of every generation: NVIDIA's legacy model and megatron-core have one parser."""

MEGATRON_LLM = Arguments(
    program="Megatron-LLM",
    fields=megatron_llm.FIELDS,
    neutral=megatron_llm.NEUTRAL,
    conditions=(),
    inert=(INERT | megatron_llm.INERT).difference(megatron_llm.FIELDS, megatron_llm.NEUTRAL),
)
"""epfLLM's Megatron-LLM: its parser is Megatron-LM's of 2022 with few names of its own."""

BRIDGE = Arguments(
    program="Megatron-Bridge",
    what="model section",
    fields=bridge.FIELDS,
    neutral=bridge.NEUTRAL,
    conditions=function.CONDITIONS,
    inert=(config.CONFIG | bridge.INERT) - bridge.FIELDS,
)
"""The model section of Megatron-Bridge's run_config.yaml; what `dialects/bridge.py` claims by itself is not in here."""

BRIDGE_SECTIONS = Arguments(
    program="Megatron-Bridge",
    what="sections",
    fields=bridge.SECTIONS,
    neutral={"peft": (None,)},
    conditions=(),
    inert=frozenset(),
)
"""The sections of that file."""
