"""`mconv data bench`: how many workers tokenize an input fastest here."""

import dataclasses
import json as jsonlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from mconv import extras
from mconv.cli import options as o
from mconv.cli.data_sources import SOURCES, SourceOptions
from mconv.cli.data_tokenizer import TokenizerOptions
from mconv.cli.terminal import before_slow
from mconv.convert.folders.host import cores
from mconv.errors import MconvError

if TYPE_CHECKING:
    from mconv.train.data.bench import Measured, Sample

TOKENIZER = TokenizerOptions()


def bench(
    *sources: Path,
    key: str = "text",
    workers: Annotated[list[int] | None, Parameter(consume_multiple=True, negative=())] = None,
    read: Annotated[SourceOptions, o.Group] = SOURCES,
    how: Annotated[TokenizerOptions, o.Group] = TOKENIZER,
    json: o.Json = False,
) -> int:
    """Measure how many workers tokenize an input fastest on this machine.

    Parameters
    ----------
    sources
        Files, folders or datasets, as for mconv data tokenize. Their beginning is tokenized and nothing is written.
    key
        Field of a record that holds the text.
    workers
        Numbers of workers to try. Default: 1, 2, 4 and so on up to all cores.
    """
    files = read.files(sources)
    extras.need("data", "transformers", to="mconv data")
    from mconv.train.data import bench as measuring
    from mconv.train.data.tokenize import job_of
    from mconv.train.data.tokenizers.types import load

    tried = sorted(set(workers)) if workers else measuring.counts(cores())
    if tried[0] < 1:
        raise MconvError(f"--workers is {tried[0]}; at least 1 is needed")
    job = job_of(load(how.choice()), [key])
    found = measuring.sample(files, [key], workers=tried[-1], max_expand=read.max_expand)
    before_slow(f"tokenizing {found.size / 1e6:.0f} MB with {', '.join(map(str, tried))} workers ...")
    rows = [*measuring.sweep(found, job, tried)]
    print(jsonlib.dumps(_facts(found, rows), indent=2) if json else "\n".join(_lines(found, rows)))
    return 0


def _facts(found: "Sample", rows: Sequence["Measured"]) -> dict[str, Any]:
    """Return the measurements in JSON values."""
    from mconv.train.data.bench import best

    return {
        "sample_bytes": found.size,
        "reading_bytes_per_second": found.rate,
        "runs": [dataclasses.asdict(row) for row in rows],
        "best_workers": best(rows).workers,
    }


def _lines(found: "Sample", rows: Sequence["Measured"]) -> list[str]:
    """Return the measurements as a table, and the advice."""
    from mconv.train.data.bench import best

    head = f"{'workers':>8}{'MB/s':>9}{'a worker':>10}{'M tokens/s':>12}{'start, s':>10}"
    table = [
        f"{row.workers:>8}{row.rate / 1e6:>9.2f}{row.rate / 1e6 / row.workers:>10.2f}{row.tokens / 1e6:>12.2f}"
        f"{row.start:>10.1f}"
        for row in rows
    ]
    top = best(rows)
    enough = f"enough for {found.rate / _alone(rows):.0f} workers"
    fed = f"one process reads this input at {found.rate / 1e6:.0f} MB/s, {enough}"
    return [head, *table, fed, f"best here: --workers {top.workers}"]


def _alone(rows: Sequence["Measured"]) -> float:
    """Return the bytes in a second of one worker, where it is fastest."""
    return max(row.rate / row.workers for row in rows)
