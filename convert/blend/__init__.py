"""Merging models tensor by tensor: mergekit's methods and recipes, computed in passes over slabs of any size.

`methods` is the table of what there is, `recipe` reads mergekit's YAML, `arithmetic` makes a merged tensor slab by slab
and `reference` makes it again, whole and in fp64, to check.
"""
