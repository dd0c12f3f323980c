"""Checkpoints on disk: what one is, what it holds, whether all of it is there."""
