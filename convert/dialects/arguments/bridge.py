"""Keys of the model section of Megatron-Bridge's run_config.yaml beside the architecture, which `dialects/bridge.py` has.

Sources: Megatron-Bridge 0.3.1 and 0.6.2, `models/gpt_provider.py`, `models/model_provider.py`,
`models/mistral/mistral_provider.py`, `models/llama/llama_provider.py`, `training/config.py` (`ConfigContainer`); the rest
of the section are fields of megatron-core's TransformerConfig (`config.py`, `function.py`).
"""

from typing import Any

from mconv.convert.dialects.arguments import megatron_lm
from mconv.convert.dialects.arguments.rows import OFF
from mconv.convert.dialects.arguments.text import names
from mconv.convert.dialects.keys import PARALLEL
from mconv.convert.spelling.claim import claimed
from mconv.convert.spelling.keys import Field, NamedKey

LAYOUT: tuple[NamedKey, ...] = (
    *PARALLEL,
    Field("vocab_size", "vocab_size", int, None),
    Field("make_vocab_size_divisible_by", "multiple", int, 128),
)
"""Keys of the layout and of the vocabulary."""
STAGES: tuple[NamedKey, ...] = (
    Field("num_layers_in_first_pipeline_stage", "first", int, None),
    Field("num_layers_in_last_pipeline_stage", "last", int, None),
    *megatron_lm.STAGES[2:],
)
"""Keys with which stages hold different numbers of layers: fields of `Uneven`. They are not read: torch_dist has none."""
FIELDS = claimed((*LAYOUT, *STAGES)) | {"_target_", "should_pad_vocab", "pipeline_model_parallel_layout"}
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "attn_logit_softcapping": (None,), "enable_mhc_connections": OFF, "hybrid_layer_pattern": (None,),
    "hybrid_override_pattern": (None,), "retro_add_retriever": OFF, "flextron": OFF,
}  # fmt: skip
"""Keys of versions later than the table's that change the function, and the values with which they do not."""
INERT = names("""
    _pg_collection fp16_lm_cross_entropy generation_config hf_model_id hf_model_revision parallel_output
    scatter_embedding_sequence_parallel tp_comm_overlap_cfg use_transformer_engine_full_layer_spec
""")
SECTIONS = names("""
    _target_ model checkpoint comm_overlap dataset ddp dist env_vars ft inprocess_restart logger mixed_precision
    nvrx_straggler optimizer optimizer_config_override_provider profiling rerun_state_machine rng scheduler straggler
    tensor_inspect tokenizer train validation
""")
"""Sections that say how a run was trained, and the model's own, which rows claim."""
