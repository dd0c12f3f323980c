"""Names as a block of text, which a reader can search."""


def names(text: str) -> frozenset[str]:
    """Return the names of a block of text."""
    return frozenset(text.split())
