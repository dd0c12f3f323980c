"""`mconv data mix` and `data merge`: prefixes of token data made into a mixture, or into one."""

import dataclasses
import json as jsonlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from mconv.cli import bars, choose
from mconv.cli import options as o
from mconv.cli.terminal import progress
from mconv.errors import MconvError, refuse

if TYPE_CHECKING:
    from mconv.train.data.mixing.merge import Merged

Several = Parameter(consume_multiple=True, negative=())
Allowed = Annotated[
    list[Literal["tokenizer", "eod", "bos", "template"]] | None,
    Parameter(
        help="Take prefixes together whose records differ in this: the tokenizer, the end-of-document token, the BOS "
        "token, the chat template. Repeatable.",
        negative=(),
    ),
]
Out = Annotated[Path, Parameter(name=["--out", "--output"], help="The folder to make.")]
OutPrefix = Annotated[Path, Parameter(name=["--out", "--output-prefix"], help="The prefix to write.")]
FAR = 0.01
"""Difference of a share from the wanted one at which `data mix` proposes --exact."""


def mix(
    *,
    data: Annotated[list[str] | None, Several] = None,
    folders: Annotated[list[Path] | None, Several] = None,
    weights: Annotated[list[float] | None, Several] = None,
    out: Out,
    exact: o.Flag = False,
    copy: o.Flag = False,
    seed: int = 1234,
    allow_different: Allowed = None,
    overwrite: o.Flag = False,
    plot: Path | None = None,
    json: o.Json = False,
) -> None:
    """Mix folders of token data by weights, without repetition.

    As much is taken as there is until one of them is used up. Weights are shares of the tokens. The result is a folder
    for `mconv train --data`, with a summary: dataset_mixture_summary.txt and dataset_mixture.json.

    Parameters
    ----------
    data
        Folders or prefixes, each behind its weight: 0.8 data/a 0.2 data/b.
    folders
        Folders or prefixes, with --weights in the same order: another way to write --data.
    weights
        The weight of each of --folders.
    exact
        Cut the last prefix of a folder between two documents, so that shares hold to about one document. Otherwise whole
        prefixes are taken, and shares hold to about one prefix.
    copy
        Copy the files. Otherwise the folder holds absolute symbolic links; what --exact cuts is written in either case.
    seed
        Seed of the order in which the prefixes of a folder are taken.
    overwrite
        Replace a mixture at --out.
    plot
        Draw the wanted and the resulting shares: a .png, .svg, .pdf or .html file.
    """
    names, shares = _weighed(data, folders, weights)
    if plot:
        bars.check(plot)
    from mconv.train.data.mixing import folder
    from mconv.train.data.mixing import mix as mixing

    folder.check_place(out, overwrite=overwrite)
    made = mixing.mixture(names, shares, out, seed=seed, exact=exact, allowed=allow_different or ())
    with progress(folder.written(made, copy=copy), "mixing") as shown:
        folder.write(made, out, copy=copy, overwrite=overwrite, progress=shown)
    facts, summary = folder.facts(made, out, copy=copy), folder.summary(made, out)
    if plot:
        _draw(facts, plot, summary)
    print(jsonlib.dumps(facts, indent=1) if json else summary)
    if not json:
        _advise(facts)


def _advise(facts: dict[str, Any]) -> None:
    """Print what could be done about shares that are far from the wanted ones, and what to do next."""
    if not facts["exact"] and any(abs(one["share"] - one["wanted"]) > FAR for one in facts["sets"]):
        print("whole prefixes come no nearer to the weights; --exact cuts between documents")
    choose.next_training(data=facts["out"])


def merge(
    *sources: Path,
    folder: Annotated[Path | None, Parameter(name=["--input"])] = None,
    out: OutPrefix,
    shuffle: o.Flag = False,
    seed: int = 42,
    allow_different: Allowed = None,
    overwrite: o.Flag = False,
    json: o.Json = False,
) -> None:
    """Merge prefixes of token data into one, document after document.

    The files are the bytes that Megatron-LM's merge_datasets.py writes. Conversations (-text and -role) are merged alike.

    Parameters
    ----------
    sources
        Prefixes, or folders whose prefixes are taken in the order of their names.
    folder
        A folder, as merge_datasets.py takes it: another way to write SOURCES.
    shuffle
        Merge the prefixes in a random order.
    seed
        Seed of that order.
    overwrite
        Replace the output of an earlier run.
    """
    given = [*sources, *([folder] if folder else [])]
    if not given:
        raise MconvError("give prefixes or a folder of them: mconv data merge data/parts --out data/all")
    if out.is_dir():
        raise MconvError(f"--out {out} is a folder; give a prefix in it, such as {out / 'all'}")
    from mconv.train.data.mixing import merge as merging

    found = merging.ordered(given, out, seed=seed if shuffle else None)
    with progress(sum(one.bytes for one in found), "merging") as shown:
        made = merging.merge(found, out, allowed=allow_different or (), overwrite=overwrite, progress=shown)
    _tell(made, json=json)
    if not made.recorded and any(one.record for one in found):
        print(f"note: {out} has no record of its tokenizer, because its sources do not have the same", file=sys.stderr)
    if not json:
        choose.next_training(data=str(out), data_type="instruction" if found[0].talks else None)


def _weighed(data: Sequence[str] | None, folders: Sequence[Path] | None, weights: Sequence[float] | None) -> Any:
    """Return (paths, weights) in either notation. Raises MconvError where both, or neither, are given."""
    if data and not folders and not weights:
        from mconv.train.data.sources import weighed

        names, shares = weighed(data)
        if shares is None:
            raise MconvError(f"give a weight before each of {' '.join(data)}: --data 0.8 data/a 0.2 data/b")
        return [Path(name) for name in names], shares
    if data or not folders or not weights:
        raise MconvError("give --data 0.8 data/a 0.2 data/b, or --folders data/a data/b --weights 0.8 0.2")
    refuse([f"{len(folders)} --folders and {len(weights)} --weights; give one weight for each"]
           * (len(folders) != len(weights)), doing="mixing")  # fmt: skip
    return list(folders), list(weights)


def _draw(facts: dict[str, Any], file: Path, about: str) -> None:
    """Draw the wanted and the resulting share of each set."""
    rows = [
        bars.Bar(one["name"], (one["wanted"], one["share"]), f"{one['share']:.2%}, {one['tokens']:,} tokens")
        for one in facts["sets"]
    ]
    bars.draw(
        [bars.Chart("Shares of the tokens", tuple(rows), ("wanted", "result"))], file, title=facts["out"], about=about
    )


def _tell(made: "Merged", *, json: bool) -> None:
    if json:
        facts = dataclasses.asdict(made) | {"prefix": str(made.prefix), "sources": [str(path) for path in made.sources]}
        print(jsonlib.dumps(facts, indent=1))
        return
    print(
        f"{made.prefix}: {len(made.sources)} prefixes, {made.documents:,} documents, {made.tokens:,} tokens, {made.dtype}"
    )
