"""One file per Megatron: what it calls each logical tensor, and which of its own args say which architecture."""

from mconv.convert.dialects import mcore, megatron_llm, nvidia_legacy
from mconv.convert.dialects.dialect import Dialect

DIALECTS: dict[str, Dialect] = {d.name: d for d in (mcore.DIALECT, nvidia_legacy.DIALECT, megatron_llm.DIALECT)}

__all__ = ["DIALECTS", "Dialect"]
