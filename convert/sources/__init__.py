"""Sources of logical tensors, which the engine reads: a checkpoint, or tensors made of other sources."""
