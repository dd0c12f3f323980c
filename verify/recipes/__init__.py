"""Models judged by the recipe in their manifest: each tensor is made again, by other code than made it."""
