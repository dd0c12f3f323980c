"""Find duplicate documents by MinHash and write the others.

Four steps, each over arrays on disk, so that memory does not grow with the corpus:

1. `sign.py` reads the documents and writes for each a digest of its text and one number a band (`work.py`: where to).
2. `buckets.py` sorts one band after the other; documents with equal numbers share a bucket and are candidates.
3. `clusters.py` compares candidates by their n-grams (`grams.py`) and joins those that are similar.
4. `write.py` reads the documents again and writes the first one of each cluster.

`scheme.py` chooses bands and rows; `run.py` has the steps in their order, whole or one by one on several nodes.
"""
