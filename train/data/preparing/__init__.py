"""Prepare a corpus in one go: collected, without duplicates, shuffled, tokenized and mixed."""
