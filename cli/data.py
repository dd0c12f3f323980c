"""`mconv data`: training data."""

import dataclasses
import json as jsonlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from mconv.cli.options import Flag

if TYPE_CHECKING:
    from mconv.train.data.record import Tokenized


def tokenize(
    *sources: Path,
    tokenizer: Path,
    prefix: Path,
    key: str = "text",
    append_eod: Annotated[bool, Parameter(negative="--no-append-eod")] = True,
    prepend_bos: Flag = False,
    workers: int = 1,
    overwrite: Flag = False,
    json: Flag = False,
) -> int:
    """Text to megatron-core's .bin and .idx, in the order of the input.

    Parameters
    ----------
    sources
        Files with one JSON object a line (.jsonl) or one document a line (.txt), either also .gz, .xz or .zst; or
        .parquet.
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
    record = run(
        list(sources), prefix, tokenizer=tokenizer, key=key, append_eod=append_eod, prepend_bos=prepend_bos,
        workers=workers, overwrite=overwrite, progress=_progress("documents"),
    )  # fmt: skip
    return _tell(record, prefix, "documents", json=json)


def instruct(
    *sources: Path,
    tokenizer: Path,
    prefix: Path,
    template: str = "tokenizer",
    messages_key: str | None = None,
    question_key: str = "question",
    answer_key: str = "answer",
    system_key: str | None = None,
    append_eod: Flag = False,
    prepend_bos: Flag = False,
    workers: int = 1,
    overwrite: Flag = False,
    json: Flag = False,
) -> int:
    """Conversations to instruction data: the tokens, and who says each of them.

    Parameters
    ----------
    sources
        Files with one conversation a line (.jsonl, also .gz, .xz or .zst): a list of turns, each with role and content
        or from and value; or one question and its answer.
    tokenizer
        Folder with a Hugging Face tokenizer: the model's own.
    prefix
        Output: PREFIX-text and PREFIX-role, a .bin and an .idx each, and PREFIX-text.mconv.json.
    template
        What writes a conversation as text: the tokenizer's own chat template, or by name: chatml, or megatron-llm for
        the files that its preprocess_instruct_data.py makes.
    messages_key
        Field with the list of turns. Default: messages or conversations.
    question_key
        Field with the question, where there is no list.
    answer_key
        Field with its answer.
    system_key
        Field with what the system says before it.
    append_eod
        End each conversation with the EOS token, where the template does not.
    prepend_bos
        Begin each conversation with the BOS token, where the template does not.
    workers
        Processes that tokenize. The output is the same for any number.
    overwrite
        Replace output that is there.
    json
        Print the record as JSON.
    """
    from mconv.errors import MconvError
    from mconv.train.data.chat import Keys
    from mconv.train.data.instruct import instruct as run

    if not sources:
        raise MconvError("give at least one file of conversations")
    keys = Keys(messages=messages_key, question=question_key, answer=answer_key, system=system_key)
    record = run(
        list(sources), prefix, tokenizer=tokenizer, template=template, keys=keys, append_eod=append_eod,
        prepend_bos=prepend_bos, workers=workers, overwrite=overwrite, progress=_progress("conversations"),
    )  # fmt: skip
    return _tell(record, prefix, "conversations", json=json)


def _progress(what: str) -> Callable[[int], None]:
    """A count that stays on its line of a terminal, and is nowhere else."""
    if not sys.stderr.isatty():
        return lambda done: None
    return lambda done: print(f"\r{done} {what}", end="", file=sys.stderr)


def _tell(record: "Tokenized", prefix: Path, what: str, *, json: bool) -> int:
    """What was made: the record, or a line of it."""
    if json:
        print(jsonlib.dumps(dataclasses.asdict(record), indent=2))
        return 0
    answers = "" if record.answer_tokens is None else f", {record.answer_tokens} of answers"
    left = f"; {record.empty} empty {what} left out" if record.empty else ""
    counts = f"{record.documents} {what}, {record.tokens} tokens of {record.vocab_size}{answers}"
    print(f"{prefix}: {counts}, {record.dtype}{left}")
    return 0
