"""One file per Megatron: what it calls each logical tensor, and which of its own args say which architecture."""
