"""Finetuning on megatron-core. The only package, with verify, that imports megatron, and it does so lazily."""
