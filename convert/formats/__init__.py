"""One file per way of laying out bytes: each opens a Reader and creates a Writer."""
