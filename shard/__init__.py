"""Index arithmetic: named axes, tensor-parallel cuts, pipeline stages. No I/O, no torch, no megatron."""
