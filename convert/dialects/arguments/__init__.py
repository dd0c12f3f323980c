"""The args of each program's checkpoints, all of them, by what they decide."""

from mconv.convert.dialects.arguments.rows import NONE_RECORDED, Arguments, check
from mconv.convert.dialects.arguments.tables import BRIDGE, BRIDGE_SECTIONS, MEGATRON_LLM, MEGATRON_LM

__all__ = ["BRIDGE", "BRIDGE_SECTIONS", "MEGATRON_LLM", "MEGATRON_LM", "NONE_RECORDED", "Arguments", "check"]
