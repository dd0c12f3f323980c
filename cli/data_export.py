"""`mconv data export`: writes the records of files, folders and datasets in another format."""

import dataclasses
import json as jsonlib
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from mconv.cli import options as o
from mconv.cli.data_progress import size
from mconv.cli.data_sources import SOURCES, SourceOptions
from mconv.cli.terminal import progress


def export(
    *sources: Path,
    out: Annotated[list[Path], Parameter(negative=())],
    key: Annotated[list[str] | None, Parameter(negative=())] = None,
    source_column: str | None = None,
    line_breaks: Literal["stop", "space", "keep"] = "stop",
    on_bad_record: Literal["stop", "skip"] = "stop",
    overwrite: Annotated[bool, Parameter(help="Replace the output of an earlier run.", negative=())] = False,
    read: Annotated[SourceOptions, o.Group] = SOURCES,
    json: o.Json = False,
) -> None:
    """Write records in another format, in the order of the input: one output of all sources.

    Parameters
    ----------
    sources
        Files, folders, patterns and datasets, as data tokenize takes them. A line of a .txt file is a record: its field
        is text.
    out
        The output, whose name says its format: .jsonl, .txt (also .gz, .bz2, .xz, .zst), .parquet, .arrow (a stream),
        .feather, or without a suffix a folder that datasets loads. Repeatable: all are written in one pass.
    key
        Field to write. Repeatable. Default: all; of a .txt file the first one, or text.
    source_column
        Name of a field to add, with the name of the record's file up to its first dot.
    line_breaks
        At a line break in a text of a .txt file: stop, write a space, or keep it, which divides the text.
    on_bad_record
        At a record that cannot be used: stop, or skip it, count it and list it in a file .rejected.jsonl.
    """
    from mconv.train.data.bad_records import POLICIES
    from mconv.train.data.writing.export import Selection
    from mconv.train.data.writing.export import export as run
    from mconv.train.data.writing.targets import Layout

    files = read.files(sources)
    with progress(size(files), "exporting") as advance:
        made = run(
            files, out, select=Selection(keys=key, source_column=source_column),
            layout=Layout(key=key[0] if key else "text", line_breaks=line_breaks), bad=POLICIES[on_bad_record],
            max_expand=read.max_expand, overwrite=overwrite, progress=lambda records, done: advance(done),
        )  # fmt: skip
    if json:
        facts = {"out": [str(path) for path in out], **dataclasses.asdict(made)}
        print(jsonlib.dumps(facts, indent=1))
        return
    left = f"; {made.empty} empty ones are in no .txt file" if made.empty else ""
    if rejected := sum(made.rejects.counts.values()):
        left += f"; {rejected} bad records left out: {made.rejects.summary()}"
    print(f"{', '.join(map(str, out))}: {made.records} records{left}")
