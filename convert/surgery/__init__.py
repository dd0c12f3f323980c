"""Models made of others: layers in another order, another vocabulary."""
