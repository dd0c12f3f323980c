"""The known faults, and how each shows in the tensors that differ."""
