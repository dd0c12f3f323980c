"""Diagnosis of two checkpoints that differ: the first module that departs, and the known fault behind it."""
