"""Tokenizers, by what the user has of them: a Hugging Face folder, a SentencePiece model, GPT-2's two files.

A type is added in two steps:

1. A function from a TokenizerChoice (`choice.py`) to a LoadedTokenizer (`loaded.py`), whose encoder is a frozen dataclass
   with `open()` (`encoders.py`): it is sent to the processes that tokenize, so it can be pickled.
2. A row in the table of `types.py` under Megatron's name of the type, with the options that it takes.
"""
