"""`mconv data dedup`: removes duplicate documents from training data."""

import json as jsonlib
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from mconv import extras
from mconv.cli import options as o
from mconv.cli import pages
from mconv.cli.data_sources import SOURCES, SourceOptions
from mconv.errors import MconvError

if TYPE_CHECKING:
    from mconv.train.data.dedup.run import Job, Shard
    from mconv.train.data.dedup.sign import Settings
    from mconv.train.data.dedup.write import Outputs

COMMAND = "mconv data dedup"


@dataclass(frozen=True, slots=True, kw_only=True)
class Similarity:
    """Options on which documents are duplicates of each other."""

    threshold: Annotated[
        float, Parameter(help="Jaccard similarity of the n-grams of two documents from which on they are duplicates.")
    ] = 0.85
    ngram: Annotated[int, Parameter(help="Words of an n-gram.")] = 5
    unit: Annotated[
        Literal["word", "character"],
        Parameter(help="What n-grams are made of. Take character for languages without spaces between words."),
    ] = "word"
    recall: Annotated[
        float | None,
        Parameter(help="Share of the pairs at the threshold that must be found: chooses bands and rows. Default: 0.99."),
    ] = None
    num_perm: Annotated[
        int | None,
        Parameter(
            help="Number of permutations, divided into bands and rows as text-dedup and datasketch do. With --recall: "
            "their largest number (default 128)."
        ),
    ] = None
    bands: Annotated[int | None, Parameter(help="Bands of the signature; with --rows.")] = None
    rows: Annotated[int | None, Parameter(help="Permutations of each band; with --bands.")] = None
    seed: Annotated[int, Parameter(help="Seed of the permutations.")] = 42
    verify: Annotated[
        bool,
        Parameter(
            help="Compare the n-grams of candidates. Without it, documents that share a band are duplicates, as in "
            "text-dedup and datatrove.",
            negative="--no-verify",
        ),
    ] = True

    def settings(self, key: str) -> "Settings":
        """Return what decides on duplicates. Raises MconvError where options contradict each other."""
        from mconv.train.data.dedup.scheme import choose
        from mconv.train.data.dedup.sign import Settings

        if self.ngram < 1:
            raise MconvError(f"--ngram is {self.ngram}; at least 1 is needed")
        if not 0 <= self.seed < 1 << 64:
            raise MconvError(f"--seed is {self.seed}; it must be from 0 to 2^64 - 1")
        scheme = choose(self.threshold, num_perm=self.num_perm, recall=self.recall, bands=self.bands, rows=self.rows)
        return Settings(
            key=key, threshold=self.threshold, ngram=self.ngram, unit=self.unit, scheme=scheme, seed=self.seed
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Nodes:
    """Options for a corpus that several nodes share on one disk."""

    work: Annotated[
        Path | None,
        Parameter(
            help="Folder for the signatures, which stays: another run with it signs only what has changed. Default: a "
            "hidden folder beside --out, which is removed at the end."
        ),
    ] = None
    phase: Annotated[
        Literal["sign", "decide", "write"] | None,
        Parameter(help="Run this step alone, with --work: sign and write on many nodes (--shard), decide once between."),
    ] = None
    shard: Annotated[str | None, Parameter(help="I/N: sign or write only share I, from 1, of N shares of the files.")] = (
        None
    )
    render_datatrove: Annotated[
        Path | None,
        Parameter(help="Write datatrove's pipeline with these parameters to this .py file instead, and run nothing."),
    ] = None


SIMILARITY, NODES = Similarity(), Nodes()


def dedup(
    *sources: Path,
    out: Path,
    key: str = "text",
    similarity: Annotated[Similarity, o.Group] = SIMILARITY,
    nodes: Annotated[Nodes, o.Group] = NODES,
    read: Annotated[SourceOptions, o.Group] = SOURCES,
    workers: int = 1,
    on_bad_record: Literal["stop", "skip"] = "stop",
    html: Path | None = None,
    overwrite: o.Flag = False,
    json: o.Json = False,
) -> int:
    """Remove duplicate documents: equal texts, and texts that share most of their n-grams (MinHash).

    Of each cluster the first document in the order of the input stays. Records are kept as they are, byte for byte.

    Parameters
    ----------
    sources
        Files with one JSON object per line (.jsonl) or one document per line (.txt), plain or compressed (.gz, .bz2,
        .xz, .zst); .parquet and .arrow files; folders and patterns of these; folders that datasets saved.
    out
        Where the kept records go: one file, if its name ends in .jsonl, .txt (also packed), .parquet or .arrow; otherwise
        a folder with a file for each source. NAME.removed.jsonl beside it lists what was removed, and why.
    key
        Field of a record that holds the text.
    workers
        Number of processes. The output does not depend on it.
    on_bad_record
        At a record that cannot be used: stop, or leave it out, count it and list it in NAME.rejected.jsonl.
    html
        Also write a report as one page: counts, clusters, and examples with what differs.
    overwrite
        Replace the output of an earlier run.
    """
    settings = similarity.settings(key)
    files = read.files(sources)
    if html:
        pages.check(html, COMMAND)
    if nodes.render_datatrove:
        return _render(files, out, settings, nodes.render_datatrove)
    extras.need("dedup", "rensa", to=COMMAND)
    from mconv.train.data.dedup.run import Job
    from mconv.train.data.dedup.run import dedup as run
    from mconv.train.data.dedup.write import outputs

    job = Job(
        sources=files, out=out, settings=settings, verify=similarity.verify, workers=workers,
        on_bad_record=on_bad_record, overwrite=overwrite, work=nodes.work, max_expand=read.max_expand,
    )  # fmt: skip
    shard = _shard(nodes, outputs(out, files))
    if not json:
        for line in _before(job):
            print(line, flush=True)
    found = run(job, phase=nodes.phase, shard=shard, tell=counts())
    if html and "clusters" in found:
        _write_page(html, found)
    print(jsonlib.dumps(found, indent=1) if json else "\n".join(_lines(found, out)))
    return 0


def _shard(nodes: Nodes, made: "Outputs") -> "Shard":
    """Return the share of the sources that --shard names. Raises MconvError where options do not go together."""
    from mconv.train.data.dedup.run import WHOLE, Shard

    if nodes.phase and not nodes.work:
        raise MconvError(f"--phase {nodes.phase} needs --work, a folder that all nodes share")
    if nodes.shard is None:
        return WHOLE
    if nodes.phase not in ("sign", "write"):
        raise MconvError("--shard goes with --phase sign or --phase write; all other steps look at the whole corpus")
    if nodes.phase == "write" and not made.folder:
        raise MconvError(f"--out {made.out} is one file, which several nodes cannot write; name a folder")
    index, slash, count = nodes.shard.partition("/")
    if not (slash and index.isdecimal() and count.isdecimal() and 1 <= int(index) <= int(count)):
        raise MconvError(f"--shard is {nodes.shard!r}; give I/N with I from 1 to N, such as 1/8")
    return Shard(int(index), int(count))


def counts() -> Callable[[str, int], None]:
    """Return a function that shows a step and its count on one line of a terminal, and nothing in a pipe."""
    if not sys.stderr.isatty():
        return lambda step, done: None
    return lambda step, done: print(f"\r\033[K{step}: {done:,}", end="", file=sys.stderr)


def _before(job: "Job") -> Iterator[str]:
    """Yield what is searched for, and what memory and disk it takes."""
    from mconv.train.data.dedup.buckets import SORTED, SORTING

    settings = job.settings
    scheme, threshold = settings.scheme, settings.threshold
    found = f"finds {100 * scheme.recall(threshold):.1f} % of the pairs at similarity {threshold:g}"
    higher = (1 + threshold) / 2
    yield f"{scheme.bands} bands of {scheme.rows} rows: {found}, {100 * scheme.recall(higher):.2f} % at {higher:g}"
    yield (
        f"disk: {8 * settings.columns} bytes a document in {job.work or job.out.parent}; memory: {SORTING} bytes a "
        f"document, at most {SORTED * SORTING >> 20} MiB a process"
    )


def _lines(found: dict[str, Any], out: Path) -> Iterator[str]:
    """Yield a summary in words."""
    if "clusters" not in found:
        yield from (f"{name}: {value if isinstance(value, int) else len(value)}" for name, value in found.items())
        return
    duplicates = f"{found['exact']} exact and {found['near']} near duplicates in {found['clusters']} clusters removed"
    yield f"{out}: {found['kept']} of {found['documents']} documents kept, {duplicates}"
    if found["chained"]:
        yield (
            f"{found['chained']} of them are less similar to the kept document than to another one of their cluster, "
            "which joined them"
        )
    if found["rejected"]:
        counts = ", ".join(f"{count} {kind}" for kind, count in found["rejected"].items())
        yield f"{sum(found['rejected'].values())} bad records left out ({counts}). The first:"
        yield from (f"  {line}" for line in found["first_rejected"])


def _write_page(html: Path, found: dict[str, Any]) -> None:
    """Write the report."""
    from mconv.cli.dedup_page import page
    from mconv.convert.folders.staging import write_whole

    write_whole(html, page(found))


def _render(sources: Sequence[Path], out: Path, settings: "Settings", script: Path) -> int:
    """Write datatrove's pipeline."""
    from mconv.cli.dedup_page import datatrove
    from mconv.convert.folders.staging import write_whole
    from mconv.train.data.reading.formats import JSON_LINES, format_of

    if script.suffix != ".py":
        raise MconvError(f"--render-datatrove {script}: give a name that ends in .py")
    if script.stem == "datatrove":
        raise MconvError(f"--render-datatrove {script} would hide the package datatrove from itself; choose another name")
    others = [str(path) for path in sources if format_of(path) is not JSON_LINES]
    if others:
        raise MconvError(f"{others[0]}: --render-datatrove takes files of JSON lines only")
    pages.check_place(script, "--render-datatrove")
    if script.exists():
        raise MconvError(f"--render-datatrove {script} is there already; choose another name")
    write_whole(script, datatrove(sources, out, settings))
    print(f"{script}: run it with a Python that has datatrove[io,processing] and spacy, --help for its options")
    return 0
