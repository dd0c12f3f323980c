"""`mconv data`: tokenizes training data."""

import dataclasses
import json as jsonlib
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from mconv import extras
from mconv.cli import choose, data_progress
from mconv.cli import options as o
from mconv.cli.data_sources import SOURCES, SourceOptions
from mconv.cli.data_tokenizer import TokenizerOptions
from mconv.cli.terminal import command
from mconv.convert.folders.host import cores
from mconv.errors import MconvError

if TYPE_CHECKING:
    from mconv.train.data.record import Tokenized

Prefix = Annotated[Path, Parameter(name=["--out", "--prefix", "--output-prefix"])]
OwnPrefix = Annotated[Path | None, Parameter(name=["--out", "--prefix"])]


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenizeOptions(TokenizerOptions):
    """Options of both commands."""

    prepend_bos: Annotated[
        bool, Parameter(help="Put the BOS token before each document, unless it begins with it.", negative=())
    ] = False
    workers: Annotated[
        int | None,
        Parameter(help="Number of processes, one core each. The output does not depend on it. Default: all cores."),
    ] = None
    on_bad_record: Annotated[
        Literal["stop", "skip"],
        Parameter(
            help="At a record that cannot be used: stop, or skip it, count it and list it in a file .rejected.jsonl."
        ),
    ] = "stop"
    overwrite: Annotated[bool, Parameter(help="Replace the output of an earlier run.", negative=())] = False
    resume: Annotated[
        bool,
        Parameter(
            help="Continue an interrupted run: the same command again, with --resume. Its input must be unchanged.",
            negative=(),
        ),
    ] = False
    log_interval: Annotated[
        int | None,
        Parameter(help="Print Megatron's progress line after so many records. Default: a bar, on a terminal only."),
    ] = None
    json: Annotated[bool, Parameter(help="Print one JSON object instead of text.", negative=())] = False

    @contextmanager
    def options(self, sources: Sequence[Path], prefix: Path, what: str, read: SourceOptions) -> Iterator[dict[str, Any]]:
        """Yield the options of the functions behind the commands, and show how many of `what` are done."""
        if self.log_interval is not None and self.log_interval < 1:
            raise MconvError(f"--log-interval is {self.log_interval}; at least 1 is needed")
        names = ("prepend_bos", "on_bad_record", "overwrite", "resume")
        own = {name: getattr(self, name) for name in names} | {"command": command(), "max_expand": read.max_expand}
        own["workers"] = cores() if self.workers is None else self.workers
        tokenizer = self.choice()
        try:
            with data_progress.shown(sources, what, every=self.log_interval) as progress:
                yield {**own, "tokenizer": tokenizer, "progress": progress}
        except (MconvError, KeyboardInterrupt):
            _say_kept(prefix)
            raise


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordFields:
    """Options on which fields of a record hold its conversation."""

    messages_key: Annotated[
        str | None, Parameter(help="Field that holds the list of turns. Default: messages or conversations.")
    ] = None
    question_key: Annotated[
        str | None,
        Parameter(
            help="Field that holds the question, where there is no list of turns. Default: question, instruction, prompt "
            "or query."
        ),
    ] = None
    answer_key: Annotated[
        str | None, Parameter(help="Field that holds the answer. Default: answer, output, response or completion.")
    ] = None
    input_key: Annotated[
        str | None, Parameter(help="Field whose text is appended to the question on a new line. Default: input.")
    ] = None
    system_key: Annotated[
        str | None, Parameter(help="Field that holds the system turn. Default: system, system_prompt or system_message.")
    ] = None
    ignore_field: Annotated[
        list[str] | None,
        Parameter(help="Ignore this field of records and turns, which mconv does not know. Repeatable.", negative=()),
    ] = None


FIELDS, HOW = RecordFields(), TokenizeOptions()


def tokenize(
    *sources: Path,
    prefix: OwnPrefix = None,
    output_prefix: Path | None = None,
    key: Annotated[list[str] | None, Parameter(negative=())] = None,
    json_keys: Annotated[list[str] | None, Parameter(consume_multiple=True, negative=())] = None,
    append_eod: Annotated[bool, Parameter(negative="--no-append-eod")] = True,
    dtype_rule: Literal["megatron", "datatrove"] = "megatron",
    read: Annotated[SourceOptions, o.Group] = SOURCES,
    how: Annotated[TokenizeOptions, o.Group] = HOW,
) -> int:
    """Tokenize text into the .bin and .idx that Megatron reads, in the order of the input.

    Parameters
    ----------
    sources
        Files with one JSON object per line (.jsonl), one document per line (.txt) or one row per document (.csv, .tsv),
        plain or compressed (.gz, .bz2, .xz, .zst); .parquet and .arrow files; folders and patterns of these; folders that
        datasets saved; hf://ORG/NAME[/CONFIG][@SPLIT].
    prefix
        The prefix of the output: PREFIX.bin, PREFIX.idx, and PREFIX.mconv.json, which records how they were made.
    output_prefix
        The same, as Megatron's tools have it: the files are OUTPUT_PREFIX_KEY_document.
    key
        Field of a record that holds the text. Repeatable: several keys make PREFIX_KEY_document each, in one pass.
        Default: text.
    json_keys
        The same as --key, as Megatron's tools spell it: --json-keys text title. Always makes PREFIX_KEY_document.
    append_eod
        Put the tokenizer's EOS token after each document, to separate documents within a sample.
    dtype_rule
        Whose rule says when 2 bytes per id are enough: below 65500 entries in the vocabulary (megatron) or up to 65536
        (datatrove).
    """
    out = _one_prefix(prefix, output_prefix)
    files = read.files(sources)
    _check(out, files)
    keys = list(dict.fromkeys([*(key or ()), *(json_keys or ())])) or ["text"]
    from mconv.train.data.tokenize import prefixes, tokenize_keys

    outputs = prefixes(out, keys, named=bool(json_keys or output_prefix))
    with how.options(files, out, "documents", read) as options:
        records = tokenize_keys(files, out, outputs, append_eod=append_eod, dtype_rule=dtype_rule, **options)
    if how.json and len(keys) == 1:
        print(jsonlib.dumps(dataclasses.asdict(records[keys[0]]), indent=2))
    elif how.json:
        print(jsonlib.dumps({key: dataclasses.asdict(record) for key, record in records.items()}, indent=2))
    else:
        for name, record in records.items():
            _tell(record, outputs[name], "documents")
        choose.next_training(data=[str(made) for made in outputs.values()])
    return 0


def instruct(
    *sources: Path,
    prefix: Prefix,
    template: str = "tokenizer",
    append_eod: o.Flag = False,
    fields: Annotated[RecordFields, o.Group] = FIELDS,
    read: Annotated[SourceOptions, o.Group] = SOURCES,
    how: Annotated[TokenizeOptions, o.Group] = HOW,
) -> int:
    """Tokenize conversations into instruction data: the tokens, and the role of each.

    Parameters
    ----------
    sources
        Files with one conversation per record, in any of the formats and places that data tokenize reads: a list of
        turns, each with role and content (or from and value), or a question and its answer.
    prefix
        The prefix of the output: PREFIX-text and PREFIX-role (.bin and .idx each), and PREFIX-text.mconv.json.
    template
        The chat template: the tokenizer's own (tokenizer), chatml, or megatron-llm, which gives the same files as its
        preprocess_instruct_data.py.
    append_eod
        Put the EOS token after each conversation, unless the template does.
    """
    files = read.files(sources)
    _check(prefix, files)
    from mconv.train.data.claims import Keys
    from mconv.train.data.instruct import instruct as run

    named = {name.removesuffix("_key"): value for name, value in dataclasses.asdict(fields).items()}
    ignored = named.pop("ignore_field") or ()
    with how.options(files, prefix, "conversations", read) as options:
        record = run(
            files, prefix, template=template, keys=Keys(**named), ignore_fields=ignored, append_eod=append_eod,
            **options,
        )  # fmt: skip
    if how.json:
        print(jsonlib.dumps(dataclasses.asdict(record), indent=2))
    else:
        _tell(record, prefix, "conversations")
        choose.next_training(data=str(prefix), data_type="instruction")
    return 0


def _one_prefix(prefix: Path | None, output_prefix: Path | None) -> Path:
    """Return the prefix of the output. Raises MconvError unless it is given once."""
    if prefix and output_prefix:
        raise MconvError("--out and --output-prefix are both given; the second names its files as Megatron does")
    if not (found := prefix or output_prefix):
        raise MconvError("data tokenize: --out is missing; `mconv data tokenize --help` shows how it is used")
    return found


def _check(prefix: Path, sources: list[Path]) -> None:
    """Refuse an unusable output before anything large is imported."""
    if prefix.is_dir():
        raise MconvError(f"--out {prefix} is a folder; give a prefix in it, such as {prefix / sources[0].stem}")
    extras.need("data", "transformers", to="mconv data")


def _say_kept(prefix: Path) -> None:
    """Say how to go on where a run that failed has left something to continue."""
    from mconv.train.data.staged import StagedRun

    if StagedRun.of(prefix).is_kept:
        print("what is written so far is kept: the same command with --resume completes it", file=sys.stderr)


def _tell(record: "Tokenized", prefix: Path, what: str) -> None:
    """Print the record of what was made, in a line."""
    answers = "" if record.answer_tokens is None else f", {record.answer_tokens} of answers"
    left = f"; {record.empty} empty {what} left out" if record.empty else ""
    if record.spelled:
        left += f"; {record.spelled} {what} contain the end-of-document token in their text, and count as several there"
    if record.unended:
        left += (
            f"; no special token ends the last answer of {record.unended}: a model trained on them does not learn to stop"
        )
    if record.excluded:
        left += f"; {record.excluded} answers excluded from the loss by their records"
    counts = f"{record.documents} {what}, {record.tokens} tokens of {record.vocab_size}{answers}"
    print(f"{prefix}: {counts}, {record.dtype}{left}")
    for line in _passed_over(record):
        print(line)


def _passed_over(record: "Tokenized") -> Iterator[str]:
    """Yield lines about fields that were ignored and bad records that were left out."""
    for names, why in ((record.ignored, "ignored, as asked"), (record.unread, "not read, because they hold no content")):
        if names:
            yield f"fields {why}: {', '.join(f'{name} ({count})' for name, count in sorted(names.items()))}"
    if record.rejected:
        counts = ", ".join(f"{count} {kind}" for kind, count in record.rejected.items())
        left = f"{sum(record.rejected.values())} bad records left out ({counts})"
        yield f"{left}; all are listed in {record.reject_file}. The first:"
        yield from (f"  {line}" for line in record.first_rejected)
