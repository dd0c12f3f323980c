"""Places in a model, as reports call them: a layer's number, or one of these names."""

EMBEDDING, FINAL_NORM, HEAD = "embed", "final_norm", "head"
