"""The one folder that knows megatron-core: what is imported from it, how it runs without CUDA, what is patched."""
