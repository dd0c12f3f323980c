"""A low-rank adapter from the difference of two models: planned, decomposed linear by linear, written."""
