"""One file per Megatron: what it calls each logical tensor, and which of its own args say which architecture."""

from mconv.convert.dialects import mcore
from mconv.convert.dialects.dialect import Dialect

DIALECTS: dict[str, Dialect] = {dialect.name: dialect for dialect in (mcore.DIALECT,)}

__all__ = ["DIALECTS", "Dialect"]
