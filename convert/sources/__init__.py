"""What the engine reads: logical tensors, from a checkpoint or made of other sources."""
