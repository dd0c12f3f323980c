"""mconv rewrites, proves, trains and ships LLaMA and Falcon checkpoints between Hugging Face and Megatron."""

__version__ = "0.1.0.dev0"
