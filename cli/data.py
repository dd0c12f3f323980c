"""`mconv data`: training data."""

import dataclasses
import json as jsonlib
import sys
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter


def tokenize(
    *sources: Path,
    tokenizer: Path,
    prefix: Path,
    key: str = "text",
    append_eod: Annotated[bool, Parameter(negative="--no-append-eod")] = True,
    prepend_bos: Annotated[bool, Parameter(negative=())] = False,
    workers: int = 1,
    overwrite: Annotated[bool, Parameter(negative=())] = False,
    json: Annotated[bool, Parameter(negative=())] = False,
) -> int:
    """Text to megatron-core's .bin and .idx, in the order of the input.

    Parameters
    ----------
    sources
        Files with one JSON object a line (.jsonl, also .gz, .xz or .zst), or .parquet.
    tokenizer
        Folder with a Hugging Face tokenizer: the model's own.
    prefix
        Output: PREFIX.bin, PREFIX.idx, and PREFIX.mconv.json, which records how they were made.
    key
        Field of each record that holds the text.
    append_eod
        End each document with the tokenizer's EOS token, so that documents in one sample are told apart.
    prepend_bos
        Begin each document with the BOS token.
    workers
        Processes that tokenize. The output is the same for any number.
    overwrite
        Replace output that is there.
    json
        Print the record as JSON.
    """
    from mconv.errors import MconvError
    from mconv.train.data.tokenize import tokenize as run

    if not sources:
        raise MconvError("give at least one file to tokenize")
    show = sys.stderr.isatty()
    record = run(
        list(sources), prefix, tokenizer=tokenizer, key=key, append_eod=append_eod, prepend_bos=prepend_bos,
        workers=workers, overwrite=overwrite,
        progress=lambda done: print(f"\r{done} documents", end="", file=sys.stderr) if show else None,
    )  # fmt: skip
    if json:
        print(jsonlib.dumps(dataclasses.asdict(record), indent=2))
    else:
        print(
            f"{prefix}: {record.documents} documents, {record.tokens} tokens of {record.vocab_size}, {record.dtype}"
            + (f"; {record.empty} empty documents left out" if record.empty else "")
        )
    return 0
