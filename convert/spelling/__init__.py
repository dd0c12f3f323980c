"""Tables that a spelling is made of: rows of tensors, rows of keys, and what is done with what no row claims."""
