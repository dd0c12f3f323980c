"""What reports call the parts of a model: a layer's number, or one of these."""

EMBEDDING, FINAL_NORM, HEAD = "embed", "final_norm", "head"
