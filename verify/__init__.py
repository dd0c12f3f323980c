"""Proofs that two checkpoints compute the same function."""
