"""`mconv data dumps`: a corpus divided into groups of files, and each tokenized by a job of its own."""

import dataclasses
import json as jsonlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from mconv import extras
from mconv.cli import data_progress
from mconv.cli import options as o
from mconv.cli.data_tokenizer import TokenizerOptions
from mconv.cli.terminal import command
from mconv.convert.folders.host import cores
from mconv.errors import MconvError

if TYPE_CHECKING:
    from mconv.train.data.dumps import Dump, Result

Words = Annotated[list[str] | None, Parameter(consume_multiple=True, negative=())]


@dataclass(frozen=True, slots=True, kw_only=True)
class Job(TokenizerOptions):
    """Options of --run."""

    run: Annotated[
        bool, Parameter(help="Tokenize the dumps that are not done yet, one after the other.", negative=())
    ] = False
    dump: Annotated[int | None, Parameter(help="Tokenize this dump alone, as one job of several does.")] = None
    out: Annotated[
        Path | None,
        Parameter(name=["--out", "--output-folder"], help="The folder for the tokens: OUT/dump-N/tokens.bin."),
    ] = None
    key: Annotated[str, Parameter(name=["--key", "--column"], help="Field of a record that holds the text.")] = "text"
    append_eod: Annotated[
        bool, Parameter(negative="--no-append-eod", help="Put the tokenizer's EOS token after each document.")
    ] = True
    prepend_bos: Annotated[bool, Parameter(help="Put the BOS token before each document.", negative=())] = False
    workers: Annotated[int | None, Parameter(help="Number of processes. Default: all cores.")] = None
    on_bad_record: Annotated[
        Literal["stop", "skip"], Parameter(help="At a record that cannot be used: stop, or skip and list it.")
    ] = "stop"

    resume: Annotated[
        bool,
        Parameter(
            help="Continue the dump that was interrupted where it stopped, instead of at its start. What is done already "
            "is never done again.",
            negative=(),
        ),
    ] = False

    @property
    def names_tokenizer(self) -> bool:
        """True where some option says which tokenizer to take."""
        return any((self.tokenizer, self.tokenizer_type, self.vocab_file, self.vocab_size))


JOB = Job()


def dumps(
    folder: Annotated[Path | None, Parameter(name=["--dataset-folder"])] = None,
    *,
    metadata: Annotated[Path, Parameter(name=["--metadata", "--preprocessing-metadata-folder"])],
    n_dumps: int | None = None,
    filter_in: Words = None,
    filter_out: Words = None,
    format: Words = None,
    job: Annotated[Job, o.Group] = JOB,
    json: o.Json = False,
) -> None:
    """Divide a corpus into dumps of about equal size, and tokenize each by a job of its own.

    The largest files come first, each into the dump that is the smallest so far. With --run, dumps are tokenized one by
    one; what is done moves to completed-dumps, so the same command takes up what is left.

    Parameters
    ----------
    folder
        The corpus: a folder that is searched for files, links followed. Not needed for a metadata folder that is there.
    metadata
        The folder for the lists of files, dumps/paths_file_N.txt, and the table of results.
    n_dumps
        Number of dumps. Default: one for each 150 GB.
    filter_in
        Take only files whose path within the corpus contains one of these.
    filter_out
        Leave out files whose path within the corpus contains one of these.
    format
        Take only files of these kinds, packed or not: jsonl, txt, csv, parquet, arrow, ... Default: all that are read,
        but json, which describes a dataset more often than it is one.
    """
    _check(folder, metadata, job)
    from mconv.train.data import dumps as dumping

    if folder and not (job.run and dumping.is_of(metadata, folder)):
        files = dumping.files_of(folder, _wanted(format), filter_in=filter_in or (), filter_out=filter_out or ())
        if not files:
            raise MconvError(f"{folder}: no file to tokenize in this folder, or the filters leave none")
        dumping.write(dumping.dumps(files, count=n_dumps), folder, metadata)
    left = [one for one in dumping.read(metadata) if job.dump in (None, one.number)]
    if job.dump is not None and not left:
        raise MconvError(f"{metadata} has no dump {job.dump} that is still to be done")
    results = [_run(one, metadata, job, json=json) for one in left] if job.run else []
    if json:
        facts = {"dumps": [_plain(one) for one in left], "results": [_plain(one) for one in results]}
        print(jsonlib.dumps(facts, indent=1))
    elif job.run:
        print(f"{metadata}: all dumps are done" if job.dump is None else f"dump {job.dump} is done")
    else:
        print("\n".join(f"dump {one.number}: {len(one.files)} files, {one.bytes / 1e9:,.3f} GB" for one in left))
        print(f"next: mconv data dumps --metadata {metadata} --run --tokenizer TOKENIZER --out OUT")


def _check(folder: Path | None, metadata: Path, job: Job) -> None:
    """Refuse what cannot be, before anything large is imported."""
    if folder is None and not metadata.is_dir():
        raise MconvError(f"give the corpus: mconv data dumps FOLDER --metadata {metadata}")
    if job.run and not (job.names_tokenizer and job.out):
        raise MconvError("--run needs --tokenizer, and --out for the tokens")
    if not job.run and (job.names_tokenizer or job.out or job.dump is not None):
        raise MconvError("--tokenizer, --out and --dump are about tokenizing; give --run, too")
    if job.run:
        extras.need("data", "transformers", to="mconv data")


def _wanted(kinds: list[str] | None) -> Callable[[Path], bool]:
    """Return what tells the files to take, by their suffix. Raises MconvError on a kind that is not read."""
    from mconv.train.data.reading.formats import FORMATS, known
    from mconv.train.data.reading.packed import without_packing

    asked = {f".{kind.lstrip('.')}" for kind in kinds or ()} or {*FORMATS} - {".json"}
    if other := sorted(asked - {*FORMATS}):
        raise MconvError(f"--format {other[0][1:]} is not read; there are {', '.join(kind[1:] for kind in FORMATS)}")
    return lambda path: known(path) is not None and without_packing(path).suffix in asked


def _run(dump: "Dump", metadata: Path, job: Job, *, json: bool) -> "Result":
    """Tokenize a dump by the engine of `mconv data tokenize`, and print its line."""
    from mconv.train.data import dumps as dumping
    from mconv.train.data.tokenize import tokenize

    assert job.out
    choice, workers = job.choice(), cores() if job.workers is None else job.workers
    own = {name: getattr(job, name) for name in ("key", "append_eod", "prepend_bos", "on_bad_record")}

    def work(files: list[Path], prefix: Path) -> int:
        with data_progress.shown(files, f"dump {dump.number}", every=None) as progress:
            return tokenize(
                files, prefix, tokenizer=choice, workers=workers, resume=job.resume, overwrite=True, progress=progress,
                command=command(), **own,
            ).tokens  # fmt: skip

    named = choice.path or choice.vocab_file
    title = named.resolve().name if named else choice.type
    table = metadata / f"tokenize-{title}-{(metadata / dumping.DATA).resolve().name}.csv"
    found = dumping.run(dump, metadata, job.out / f"dump-{dump.number}", work, table=table, workers=workers)
    if not json:
        speed = f"{found.tokens / found.seconds:,.0f} tokens/s, {found.bytes / found.seconds / 1e6:,.1f} MB/s"
        print(f"dump {dump.number}: {len(dump.files)} files, {found.tokens:,} tokens, {found.seconds:,.1f} s, {speed}")
    return found


def _plain(found: Any) -> dict[str, Any]:
    """Return a dump or a result as plain values."""
    values = dataclasses.asdict(found)
    lists = {name: list(map(str, value)) for name, value in values.items() if isinstance(value, tuple)}
    return {name: value if isinstance(value, int | float) else str(value) for name, value in values.items()} | lists
