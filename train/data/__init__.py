"""From jsonl to megatron-core datasets."""
