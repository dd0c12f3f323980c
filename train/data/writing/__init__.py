"""Write records to files: JSON lines, text, tables, folders as `datasets` saves them.

A format is added by a `Target` (`targets.py`) in its table of suffixes. How a file is packed is another table,
`packing.py`.
"""
