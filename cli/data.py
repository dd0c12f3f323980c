"""`mconv data`: training data."""

import dataclasses
import json as jsonlib
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from mconv.cli import options as o
from mconv.errors import MconvError, refuse

if TYPE_CHECKING:
    from mconv.train.data.record import Tokenized

Prefix = Annotated[Path, Parameter(name=["--out", "--prefix"])]


@dataclass(frozen=True, slots=True, kw_only=True)
class How:
    """Options of both commands."""

    tokenizer: Annotated[
        Path,
        Parameter(
            help="Where the model's tokenizer is: a Hugging Face folder, a Megatron checkpoint that mconv made, or a "
            "repository ORG/NAME in the Hub's cache."
        ),
    ]
    prepend_bos: Annotated[
        bool, Parameter(help="Begin each with the BOS token, where that is not there already.", negative=())
    ] = False
    workers: Annotated[int, Parameter(help="Processes that tokenize. The output is the same for any number.")] = 1
    on_bad_record: Annotated[
        Literal["stop", "skip"],
        Parameter(help="Stop at a record that cannot be used, or leave it out, count it and list it in a reject file."),
    ] = "stop"
    overwrite: Annotated[bool, Parameter(help="Replace output that is there.", negative=())] = False
    json: Annotated[bool, Parameter(help="Print the record as JSON.", negative=())] = False

    def options(self, what: str) -> dict[str, Any]:
        """What the functions behind the commands take; `what` is counted on a terminal."""
        names = ("prepend_bos", "workers", "on_bad_record", "overwrite")
        own = {name: getattr(self, name) for name in names}
        return {**own, "tokenizer": o.tokenizer(self.tokenizer), "progress": _progress(what)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Fields:
    """Where a record has its conversation."""

    messages_key: Annotated[
        str | None, Parameter(help="Field with the list of turns. Default: messages or conversations.")
    ] = None
    question_key: Annotated[
        str | None,
        Parameter(help="Field with the question, without a list. Default: question, instruction, prompt or query."),
    ] = None
    answer_key: Annotated[
        str | None, Parameter(help="Field with its answer. Default: answer, output, response or completion.")
    ] = None
    input_key: Annotated[
        str | None, Parameter(help="Field with what is joined to the question, on a line of its own. Default: input.")
    ] = None
    system_key: Annotated[
        str | None, Parameter(help="Field with the first system turn, beside system, system_prompt and system_message.")
    ] = None
    ignore_field: Annotated[
        list[str] | None,
        Parameter(help="Pass over this field of records and turns, which no table claims. Repeatable.", negative=()),
    ] = None


FIELDS = Fields()


def tokenize(
    *sources: Path,
    prefix: Prefix,
    key: str = "text",
    append_eod: Annotated[bool, Parameter(negative="--no-append-eod")] = True,
    how: Annotated[How, Parameter(name="*")],
) -> int:
    """Text to megatron-core's .bin and .idx, in the order of the input.

    Parameters
    ----------
    sources
        Files with one JSON object a line (.jsonl) or one document a line (.txt), either also .gz, .xz or .zst; or
        .parquet.
    prefix
        Output: PREFIX.bin, PREFIX.idx, and PREFIX.mconv.json, which records how they were made.
    key
        Field of each record that holds the text.
    append_eod
        End each document with the tokenizer's EOS token, so that documents in one sample are told apart.
    """
    _check(sources, prefix)
    options = how.options("documents")
    from mconv.train.data.tokenize import tokenize as run

    record = run(list(sources), prefix, key=key, append_eod=append_eod, **options)
    return _tell(record, prefix, "documents", json=how.json)


def instruct(
    *sources: Path,
    prefix: Prefix,
    template: str = "tokenizer",
    append_eod: o.Flag = False,
    fields: Annotated[Fields, Parameter(name="*")] = FIELDS,
    how: Annotated[How, Parameter(name="*")],
) -> int:
    """Conversations to instruction data: the tokens, and who says each of them.

    Parameters
    ----------
    sources
        Files with one conversation a line (.jsonl, also .gz, .xz or .zst): a list of turns, each with role and content
        or from and value; or one question and its answer.
    prefix
        Output: PREFIX-text and PREFIX-role, a .bin and an .idx each, and PREFIX-text.mconv.json.
    template
        What writes a conversation as text: the tokenizer's own chat template, or by name: chatml, or megatron-llm for
        the files that its preprocess_instruct_data.py makes.
    append_eod
        End each conversation with the EOS token, where the template does not.
    """
    _check(sources, prefix)
    options = how.options("conversations")
    from mconv.train.data.claims import Keys
    from mconv.train.data.instruct import instruct as run

    named = {name.removesuffix("_key"): value for name, value in dataclasses.asdict(fields).items()}
    ignored = named.pop("ignore_field") or ()
    record = run(
        list(sources), prefix, template=template, keys=Keys(**named), ignore_fields=ignored, append_eod=append_eod,
        **options,
    )  # fmt: skip
    return _tell(record, prefix, "conversations", json=how.json)


def _check(sources: tuple[Path, ...], prefix: Path) -> None:
    """Refuse, before anything is imported, sources that are not there and an output that cannot be."""
    if not sources:
        raise MconvError("give at least one file to read")
    problems = [f"{path}: {'is a folder; give its files' if path.is_dir() else 'no such file'}"
                for path in sources if not path.is_file()]  # fmt: skip
    refuse(problems, doing="reading the input")
    if prefix.is_dir():
        raise MconvError(f"--out {prefix} is a folder; give a prefix in it, such as {prefix / sources[0].stem}")


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
    if record.spelled:
        left += f"; the text of {record.spelled} spells the token that ends a document, and is taken for several there"
    if record.unended:
        left += (
            f"; no special token ends the last answer of {record.unended}: who learns from them does not learn to stop"
        )
    if record.excluded:
        left += f"; {record.excluded} answers excluded from the loss by their records"
    counts = f"{record.documents} {what}, {record.tokens} tokens of {record.vocab_size}{answers}"
    print(f"{prefix}: {counts}, {record.dtype}{left}")
    for line in _passed_over(record):
        print(line)
    return 0


def _passed_over(record: "Tokenized") -> Iterator[str]:
    """Yield a line each about fields that were passed over, and bad records that were left out, the first ones named."""
    for names, why in ((record.ignored, "ignored, as asked"), (record.unread, "not read, since they say nothing")):
        if names:
            yield f"fields {why}: {', '.join(f'{name} ({count})' for name, count in sorted(names.items()))}"
    if record.rejected:
        counts = ", ".join(f"{count} {kind}" for kind, count in record.rejected.items())
        left = f"{sum(record.rejected.values())} bad records left out ({counts})"
        yield f"{left}; all are listed in {record.reject_file}. The first:"
        yield from (f"  {line}" for line in record.first_rejected)
