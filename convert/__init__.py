"""Spelling and bytes: families, dialects, formats, and the one engine that rewrites between them."""
