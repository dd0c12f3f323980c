"""Prepare a corpus in one go: collected, shuffled, tokenized and mixed."""
