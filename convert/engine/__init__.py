"""One conversion: planned, streamed tensor by tensor, journaled, and published all at once."""
