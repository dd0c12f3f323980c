"""Read records from files: text, JSON lines, tables; plain or compressed.

One process reads the files and cuts them into batches; the workers open the batches, parse and tokenize them. So a batch
holds bytes or rows as they were read, it can be pickled, and nothing in it has been looked at yet.

A format is added in two steps:

1. A subclass of `Batch` (`batch.py`) with `records()`, which yields the fields of each record with its place, and
   BadRecord (as a value, not raised) where there are none. `texts(keys)` follows from it: the texts under several fields.
   Override it where that is quicker, or where a record is text without fields (`lines.py`: TextLines).
2. A function `(path, keys, expansion) -> Iterator[Batch]` that reads a file from its start to its end, in bounded
   memory, always cutting it at the same places (a run that was killed counts batches to find where it stopped). `keys`
   are the fields that are wanted, None all of them: a table reads only these columns. `expansion` is told of the bytes
   that a packed file gives (`expansion.py`). It raises FormatError with the file's name where the file is cut short,
   damaged or lacks a column. `formats.py` has the table of these functions by suffix, with the package that each needs.

How a file is unpacked is another table, `packed.py`; readers of lines get every packing from it. `inputs.py` finds the
files that a user names by folders and patterns, `named.py` reads datasets by name.
"""
